"""A layer that upsamples by transposed convolution."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iterinf.ops.upsampling import convolve_transposed


class Upsampling(nn.Module):
    """Transposed convolution from h to (h - 1) stride + size rows, c to c channels.

    Attributes:
      size: The size of the kernel, at most 2 * stride.
      stride: The stride.
      kernel_init: The initialisation of the kernel.
      dtype: The dtype of the computation.
    """

    size: int
    stride: int
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
        """Upsamples x."""
        c, missing = x.shape[-1], 2 * self.stride - self.size
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, c, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        padding = ((0, missing), (0, missing), (0, 0), (0, 0))
        kernel = jnp.pad(kernel.astype(self.dtype), padding)
        x = convolve_transposed(x, kernel, self.stride)
        x = x[:, : x.shape[1] - missing, : x.shape[2] - missing]
        return (x + bias[None, None, None]).astype(self.dtype)  # added in float32
