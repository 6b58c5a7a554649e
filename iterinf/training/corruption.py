"""Corruption of the segmentation that a denoising autoencoder reads in training."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

CONSTRAINTS = {
    "none": lambda y: y,
    "clip": lambda y: jnp.clip(y, 0.0, 1.0),
    "softmax": jax.nn.softmax,
}


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
      key: The random key of the noise.
      y: The class probabilities, or the one-hot truth.
      sigma: The standard deviation; .1 for y and .5 for the truth in the paper.
      constraint: The map applied to the noisy y: "none" (values may leave [0, 1]),
        "clip" or "softmax".
    """
    noise = jax.random.normal(key, y.shape, y.dtype)
    return CONSTRAINTS[constraint](y + sigma * noise)
