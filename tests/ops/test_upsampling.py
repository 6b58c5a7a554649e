"""Transposed convolution equals a loop and XLA's, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.ops.upsampling import convolve_transposed


def paint_by_loop(x, kernel, stride):
    """Every input adds its painted kernel to the output."""
    b, h, w, _ = x.shape
    size, d = kernel.shape[0], kernel.shape[3]
    out = np.zeros((b, (h + 1) * stride, (w + 1) * stride, d))
    for p, q in np.ndindex(h, w):
        rows = slice(stride * p, stride * p + size)
        columns = slice(stride * q, stride * q + size)
        out[:, rows, columns] += np.einsum("bc,ijcd->bijd", x[:, p, q], kernel)
    return out


def convolve_by_xla(x, kernel, stride):
    """XLA's transposed convolution flips the kernel; this one does not."""
    return jax.lax.conv_transpose(
        x,
        kernel[::-1, ::-1],
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize(("stride", "size"), [(1, (3, 4)), (2, (3, 5)), (8, (2, 3))])
def test_equals_a_loop_and_xla_with_gradients(rng, stride, size):
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    kernel_shape = (2 * stride, 2 * stride, 3, 4)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def compute(convolve, x, kernel):
        found, pull_back = jax.vjp(lambda *a: convolve(*a, stride), x, kernel)
        return found, pull_back(jnp.cos(found))

    found = compute(convolve_transposed, x, kernel)
    expected = compute(convolve_by_xla, x, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3), found, expected)
    np.testing.assert_allclose(found[0], paint_by_loop(x, kernel, stride), atol=1e-4)
