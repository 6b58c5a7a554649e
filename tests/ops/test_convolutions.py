"""Convolution equals XLA's, gradients included, whichever side is narrower."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.ops import convolutions
from iterinf.ops.convolutions import convolve

CASES = {
    "fewer channels out": ((2, 9, 7, 5), (3, 3, 5, 2), "SAME"),
    "fewer channels in": ((2, 9, 7, 2), (3, 3, 2, 5), "SAME"),
    "one by one": ((2, 4, 5, 3), (1, 1, 3, 4), "VALID"),
    "padded unevenly": ((1, 6, 5, 4), (3, 2, 4, 3), ((1, 2), (0, 3))),
    "padded wider than the kernel": ((1, 6, 5, 4), (3, 3, 4, 3), ((5, 4), (4, 5))),
    "padded wider, fewer in": ((1, 6, 5, 3), (3, 3, 3, 4), ((5, 4), (4, 5))),
    "wide": ((1, 3, 3, 20), (3, 3, 20, 24), "SAME"),
}


def convolve_by_xla(x, kernel, padding):
    """The definition to compare with."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers
    )


@partial(jax.jit, static_argnums=0)
def differentiate(function, x, kernel):
    """Returns the value and both gradients, of one that depends on the value."""
    found, pull_back = jax.vjp(function, x, kernel)
    return found, pull_back(jnp.cos(found))


@pytest.mark.parametrize("block_bytes", [1, 1000, 1_000_000])
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "padding"), CASES.values(), ids=CASES
)
def test_equals_xla_with_gradients(
    rng, monkeypatch, x_shape, kernel_shape, padding, block_bytes
):
    monkeypatch.setattr(convolutions, "_BYTES", block_bytes)
    x = jnp.asarray(rng.normal(size=x_shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)
    found = differentiate(lambda *a: convolve(*a, (1, 1), padding), x, kernel)
    expected = differentiate(lambda *a: convolve_by_xla(*a, padding), x, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4), found, expected)


def test_gradients_of_halves_are_summed_in_float32(rng):
    x = jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.bfloat16)

    @jax.jit
    def pull_back(x, kernel):
        value, pull_back = jax.vjp(
            lambda kernel: convolve(x, kernel, (1, 1), "SAME"), kernel
        )
        return pull_back(jnp.ones_like(value))[0]

    found = pull_back(x, kernel)
    exact = pull_back(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


def test_vmap_equals_loop(rng):
    x = jnp.asarray(rng.normal(size=(3, 1, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 2)), jnp.float32)

    def pull_back(x):
        return differentiate(lambda *a: convolve(*a, (1, 1), "SAME"), x, kernel)

    found = jax.vmap(pull_back)(x)
    expected = jax.tree.map(lambda *rows: jnp.stack(rows), *map(pull_back, x))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), found, expected)


def test_is_what_flax_takes(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    ours = nn.Conv(4, (3, 3), conv_general_dilated=convolve)
    variables = ours.init(jax.random.key(0), x)
    expected = nn.Conv(4, (3, 3)).apply(variables, x)
    np.testing.assert_array_equal(ours.apply(variables, x), expected)
