"""Every position that ties for the maximum is a switch: NumPy by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.ops.ties import max_pool_with_ties, max_unpool_ties


def pool_by_loop(x):
    """Maxima, and the map of the positions where they are reached."""
    b, h, w, c = x.shape
    pooled = np.zeros((b, h // 2, w // 2, c), x.dtype)
    reached = np.zeros(x.shape, bool)
    for n, i, j, k in np.ndindex(*pooled.shape):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k]
        pooled[n, i, j, k] = window.max()
        reached[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k] = window == window.max()
    return pooled, reached


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (6, 9)])
def test_equals_a_loop(rng, size):
    x = rng.integers(0, 3, (2, *size, 3)).astype(np.float32)
    pooled, ties = max_pool_with_ties(jnp.asarray(x))
    expected, reached = pool_by_loop(x)
    np.testing.assert_array_equal(pooled, expected)
    values = rng.normal(size=pooled.shape).astype(np.float32)
    unpooled = max_unpool_ties(jnp.asarray(values), ties, size)
    repeated = np.zeros_like(x)
    h, w = (n // 2 * 2 for n in size)
    repeated[:, :h, :w] = values.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(unpooled, np.where(reached, repeated, 0))


def test_without_ties_it_is_the_switch(rng):
    x = jnp.asarray(rng.normal(size=(2, 6, 8, 3)), jnp.float32)
    pooled, ties = max_pool_with_ties(x)
    expected, switches = iterinf.max_pool_with_switches(x)
    np.testing.assert_array_equal(pooled, expected)
    for fill in (0.0, 0.5):
        np.testing.assert_array_equal(
            max_unpool_ties(pooled, ties, (6, 8), fill=fill),
            iterinf.max_unpool(expected, switches, (6, 8), fill=fill),
        )
