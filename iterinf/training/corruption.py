"""Noise on the labelling that a denoising autoencoder reads in training."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from iterinf.errors import UserError

_CONSTRAINTS = {
    "none": lambda y: y,
    "clip": lambda y: jnp.clip(y, 0.0, 1.0),
    "softmax": jax.nn.softmax,
}


def check_constraint(name: str) -> None:
    """Raises a UserError if there is no constraint of this name."""
    if name not in _CONSTRAINTS:
        raise UserError(
            f"unknown constraint {name!r}; known: {', '.join(_CONSTRAINTS)}"
        )


def corrupt(
    key: Key[Array, ""],
    y: Float[Array, "b h w k"],
    *,
    sigma: float,
    constraint: str = "none",
) -> Float[Array, "b h w k"]:
    """Adds Gaussian noise to every pixel and class.

    y~ = constraint(y + sigma * e),  e ~ N(0, 1)              (paper, section 2.2)

    Args:
      key: draws the noise; the same key draws the same noise.
      y: class probabilities, or one-hot truth.
      sigma: standard deviation; the paper has .1 for y and .5 for the truth.
      constraint: "none" (the default: values leave [0, 1]), "clip" or "softmax".

    Raises:
      UserError: unknown constraint.
    """
    check_constraint(constraint)
    return _CONSTRAINTS[constraint](
        y + sigma * jax.random.normal(key, y.shape, y.dtype)
    )
