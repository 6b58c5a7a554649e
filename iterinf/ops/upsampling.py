"""Transposed convolution as a matrix product."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve_transposed(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i i c d"], stride: int
) -> Float[Array, "b _ _ d"]:
    """Computes a transposed convolution of stride s with a kernel of size 2s.

    out[s p + i, s q + j] += x[p, q] @ kernel[i, j],  i, j = 0..2s-1

    Every block of s x s outputs reads 2 x 2 inputs: a matrix product, then depth to
    space. On a CPU its gradient is fifty times faster than `flax.linen.ConvTranspose`
    (11 classes, stride 8), whose dilated convolutions XLA runs naively. The kernel is
    not flipped, as in PyTorch; the result is not cropped, [b, (h + 1) s, (w + 1) s, d].
    """
    b, h, w, c = x.shape
    s, d = stride, kernel.shape[-1]
    corners = [
        jnp.pad(x, ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0)))
        for i in (0, 1)
        for j in (0, 1)
    ]
    windows = jnp.concatenate(corners, axis=-1)  # b h+1 w+1 4c
    weights = kernel.reshape(2, s, 2, s, c, d).transpose(0, 2, 4, 1, 3, 5)
    if isinstance(windows.size, int):  # not symbolic; the gradient is faster if flat
        windows = windows.reshape(-1, 4 * c)
    blocks = windows @ weights.reshape(4 * c, s * s * d)
    blocks = blocks.reshape(b, h + 1, w + 1, s, s, d).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(b, (h + 1) * s, (w + 1) * s, d)
