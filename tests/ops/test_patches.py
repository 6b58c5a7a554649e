"""Convolution by patches equals XLA's, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.ops.patches import convolve_patches

CASES = [
    ((2, 5, 7, 3), (7, 7, 3, 4), ((3, 3), (3, 3))),
    ((1, 4, 5, 2), (3, 2, 2, 1), ((1, 2), (0, 3))),
]


def convolve_by_xla(x, kernel, padding):
    """The definition to compare with."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers
    )


@pytest.mark.parametrize(("x_shape", "kernel_shape", "padding"), CASES)
def test_equals_xla_with_gradients(rng, x_shape, kernel_shape, padding):
    x = jnp.asarray(rng.normal(size=x_shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def compute(convolve, x, kernel):
        found, pull_back = jax.vjp(convolve, x, kernel)
        return found, pull_back(jnp.cos(found))

    found = compute(lambda *a: convolve_patches(*a, (1, 1), padding), x, kernel)
    expected = compute(lambda *a: convolve_by_xla(*a, padding), x, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3), found, expected)


def test_the_kernel_is_not_flipped():
    x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(1.0)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    found = convolve_patches(x, kernel, (1, 1), ((1, 1), (1, 1)))
    np.testing.assert_array_equal(
        found[0, :, :, 0], np.arange(8.0, -1, -1).reshape(3, 3)
    )
