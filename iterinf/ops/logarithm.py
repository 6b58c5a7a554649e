"""The logarithm of probabilities."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_clipped(y: Float[Array, "*n k"], lowest: float) -> Float[Array, "*n k"]:
    """Computes log y, with y clipped at `lowest`, below which the gradient is zero."""
    return jnp.log(jnp.clip(y, lowest, 1.0))
