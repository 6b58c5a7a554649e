"""Convolution as a matrix product with patches."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve_patches(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b _ _ d"]:
    """Convolves at stride 1 by one matrix product with all patches.

    For large kernels on small maps, such as FCN-8's fc6 (7x7 at 1/32 of the image), for
    which XLA has no fast padded convolution on CPUs: a 7x7 kernel with 128 to 1024
    channels on 5x7 cells takes 3.9 s, and 0.02 s here. Can be passed to
    `flax.linen.Conv`, whose other arguments must be at their defaults.
    """
    del strides, options
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = kernel.shape[:2]
    patches = gather_patches(x, (rows, columns))
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def gather_patches(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b _ _ p"]:
    """Gathers all windows of (rows, columns) at stride 1, by row, column, channel."""
    rows, columns = size
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [
        x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)
    ]
    return jnp.concatenate(shifted, axis=-1)
