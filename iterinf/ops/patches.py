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
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    patches = jnp.concatenate(
        [
            x[:, i : i + height, j : j + width]
            for i in range(rows)
            for j in range(columns)
        ],
        axis=-1,
    )
    return patches @ kernel.reshape(-1, kernel.shape[-1])
