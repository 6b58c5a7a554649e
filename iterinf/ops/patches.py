"""Convolution as one matrix product over patches."""

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
    """Convolves at stride 1: gathers every patch, multiplies once.

    For large kernels over small maps, like FCN-8's fc6 (7x7 over 1/32 of the image).
    There XLA on a CPU has no fast path for a padded convolution: at 7x7, 128 to 1024
    channels, on 5x7 cells, 3.9 s against 0.02 s for this.

    Args:
      x: input.
      kernel: as of `flax.linen.Conv`.
      strides: ones.
      padding: zeros before and after the two spatial axes.
      **options: the rest of `jax.lax.conv_general_dilated`'s arguments, at their
        defaults; the signature is what `flax.linen.Conv.conv_general_dilated` takes.

    Returns:
      [b, h + padding - i + 1, w + padding - j + 1, d].
    """
    del strides, options
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = kernel.shape[:2]
    patches = gather_patches(x, (rows, columns))
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def gather_patches(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b _ _ p"]:
    """Lays out the windows of a size that lie in x, one position apart.

    Args:
      x: input.
      size: (rows, columns) of a window.

    Returns:
      [b, h - rows + 1, w - columns + 1, rows * columns * c], by row, column, channel.
    """
    rows, columns = size
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [
        x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)
    ]
    return jnp.concatenate(shifted, axis=-1)
