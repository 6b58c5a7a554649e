"""Convolutions whose gradients are fast on CPUs; other devices keep XLA's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.ops.patches import gather_patches

_BYTES = 2_000_000  # of the patches of a block of rows: what caches hold
_MOST_CHANNELS = 16  # of the narrower side; above, XLA's own gradient is level

_FEW_POSITIONS = 512  # of a whole batch; at 1568 XLA's gradients are level
_LARGE_KERNEL = 1 << 20  # numbers

Padding = Sequence[tuple[int, int]]
PullBack = Callable[[Padding, Array, Array, Array], tuple[Array, Array]]


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: str | Padding,
    **options: Any,
) -> Float[Array, "b _ _ d"]:
    """Convolves at stride 1 as `jax.lax.conv_general_dilated` does, and faster back.

    The gradient by the kernel is, with rows p and columns q of the padded input x,

        dL/dkernel[i, j] = sum over p, q of x[p + i, q + j]^T dL/dy[p, q].

    XLA computes it on a CPU as a convolution whose window is the whole map. Where x or
    dL/dy has at most 16 channels, a loop over blocks of rows here gathers patches of
    the one with fewer and multiplies matrices. Alone on two cores, 112 to 16 channels
    at 3x224x224 take 62 ms for 113, 192 to 16 at 3x56x56 take 6 ms for 15. Worth it
    where many layers are so narrow, as in FC-DenseNet; elsewhere XLA gains as much by
    computing several gradients at once. Other devices keep XLA's. Cannot be
    differentiated in forward mode.

    Args:
      x: input.
      kernel: as of `flax.linen.Conv`.
      strides: ones.
      padding: zeros before and after the two spatial axes, or "SAME" or "VALID".
      **options: the rest of `jax.lax.conv_general_dilated`'s arguments, at their
        defaults; the signature is what `flax.linen.Conv.conv_general_dilated` takes.

    Returns:
      [b, h + padding - i + 1, w + padding - j + 1, d].
    """
    del options
    padding = _list_padding(x, kernel, strides, padding)
    if min(kernel.shape[2:]) > _MOST_CHANNELS:
        return _convolve_by_xla(padding, x, kernel)
    return _convolve(_pull_back_narrow, padding, x, kernel)


def convolve_deep(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: str | Padding,
    **options: Any,
) -> Float[Array, "b _ _ d"]:
    """Convolves at stride 1, with fast gradients where large kernels meet small maps.

    With patches P [positions, i * j * c] of x and the kernel K as [i * j * c, d],

        dL/dK = P^T dL/dy,    dL/dP = dL/dy K^T,

    and dL/dx sums dL/dP where patches overlap. XLA on a CPU transposes K instead, which
    takes longer than the products where positions are few: from 1024 to 2048 channels
    at 2x7x7, 131 ms on two cores for 46 here. Other sizes are XLA's.

    Args:
      x: input.
      kernel: as of `flax.linen.Conv`.
      strides: ones.
      padding: as of `convolve`.
      **options: as of `convolve`.

    Returns:
      [b, h + padding - i + 1, w + padding - j + 1, d].
    """
    del options
    padding = _list_padding(x, kernel, strides, padding)
    positions = x.shape[0] * x.shape[1] * x.shape[2]
    if positions > _FEW_POSITIONS or kernel.size < _LARGE_KERNEL:
        return _convolve_by_xla(padding, x, kernel)
    return _convolve(_pull_back_deep, padding, x, kernel)


def _list_padding(
    x: Array, kernel: Array, strides: Sequence[int], padding: str | Padding
) -> Padding:
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            x.shape[1:3], kernel.shape[:2], strides, padding
        )
    return tuple((int(low), int(high)) for low, high in padding)


def _convolve_by_xla(padding: Padding, x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(pull_back: PullBack, padding: Padding, x: Array, kernel: Array) -> Array:
    """XLA's convolution, whose gradients a CPU computes by `pull_back`."""
    del pull_back
    return _convolve_by_xla(padding, x, kernel)


def _convolve_forward(pull_back, padding, x, kernel):
    return _convolve(pull_back, padding, x, kernel), (x, kernel)


def _convolve_backward(pull_back, padding, residuals, gradient):
    return jax.lax.platform_dependent(
        *residuals,
        gradient,
        cpu=functools.partial(pull_back, padding),
        default=functools.partial(_pull_back_by_xla, padding),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _pull_back_by_xla(padding, x, kernel, gradient):
    _, pull_back = jax.vjp(functools.partial(_convolve_by_xla, padding), x, kernel)
    return pull_back(gradient)


def _pull_back_narrow(padding, x, kernel, gradient):
    _, pull_back = jax.vjp(lambda x: _convolve_by_xla(padding, x, kernel), x)
    to_kernel = _pull_back_to_kernel(padding, kernel.shape[:2], x, gradient)
    return *pull_back(gradient), to_kernel


def _pull_back_deep(padding, x, kernel, gradient):
    """Sums in float32, where patches overlap too."""
    size, d = kernel.shape[:2], kernel.shape[-1]
    x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    patches, fold = jax.vjp(lambda x: gather_patches(_pad(x, padding), size), x)
    weights = kernel.reshape(-1, d).astype(jnp.float32)
    (to_input,) = fold(jnp.einsum("byxd,pd->byxp", gradient, weights))
    to_kernel = jnp.einsum("byxp,byxd->pd", patches, gradient).reshape(kernel.shape)
    return to_input.astype(kernel.dtype), to_kernel.astype(kernel.dtype)


def _pull_back_to_kernel(
    padding: Padding,
    size: tuple[int, int],
    x: Float[Array, "b h w c"],
    gradient: Float[Array, "b y x d"],
) -> Float[Array, "i j c d"]:
    """Multiplies blocks of rows by patches of the same rows of the other side.

    Patches of x end where the gradient's rows do; the gradient's begin with those of
    x, so that its patches list the kernel's cells backwards.
    """
    c, d = x.shape[-1], gradient.shape[-1]
    if c < d:
        products = _multiply_patches(gradient, _pad(x, padding), size)
        return products.reshape(d, *size, c).transpose(1, 2, 3, 0)
    spread = [
        (n - 1 - low, n - 1 - high)
        for n, (low, high) in zip(size, padding, strict=True)
    ]
    products = _multiply_patches(x, _pad(gradient, spread), size)
    return products.reshape(c, *size, d).transpose(1, 2, 0, 3)[::-1, ::-1]


def _pad(x: Float[Array, "b h w c"], padding: Padding) -> Float[Array, "b _ _ c"]:
    """Pads with zeros; cuts off where a number is negative."""
    zero = jnp.zeros((), x.dtype)
    return jax.lax.pad(x, zero, [(0, 0, 0), *((*n, 0) for n in padding), (0, 0, 0)])


def _multiply_patches(
    x: Float[Array, "b h w m"], padded: Float[Array, "b _ _ n"], size: tuple[int, int]
) -> Float[Array, "m p"]:
    """Computes x^T @ patches(padded), [m, i * j * n], a block of rows at a time."""
    batch, height, width, m = x.shape
    num_columns = size[0] * size[1] * padded.shape[-1]
    row_bytes = batch * width * num_columns * x.dtype.itemsize
    num_blocks = -(-height // max(1, _BYTES // row_bytes))
    rows = -(-height // num_blocks)
    num_blocks = -(-height // rows)
    missing = ((0, rows * num_blocks - height), (0, 0))
    x, padded = _pad(x, missing), _pad(padded, missing)

    def add_block(block, products):
        y = jax.lax.dynamic_slice_in_dim(x, block * rows, rows, axis=1)
        z = jax.lax.dynamic_slice_in_dim(
            padded, block * rows, rows + size[0] - 1, axis=1
        )
        return products + jnp.matmul(
            y.reshape(-1, m).T,
            gather_patches(z, size).reshape(-1, num_columns),
            preferred_element_type=jnp.float32,
        )

    products = jnp.zeros((m, num_columns), jnp.float32)
    products = jax.lax.fori_loop(0, num_blocks, add_block, products)
    return products.astype(x.dtype)
