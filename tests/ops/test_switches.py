"""Pooling with switches and unpooling: NumPy loops, ties, odd sizes, PyTorch."""

import itertools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf

pool = jax.jit(iterinf.max_pool_with_switches)
unpool = jax.jit(iterinf.max_unpool, static_argnums=2)
SIZES = [(6, 8), (7, 9), (6, 9), (1, 4)]
BY_PYTORCH = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "max_unpool.npz")


def pool_by_loop(x):
    """Maxima and switches, window by window; argmax takes the first of equals."""
    x = np.asarray(x)
    b, h, w, c = x.shape
    pooled = np.zeros((b, h // 2, w // 2, c), x.dtype)
    switches = np.zeros(pooled.shape, np.uint8)
    for n, i, j, k in np.ndindex(*pooled.shape):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k].reshape(-1)
        pooled[n, i, j, k] = window.max()
        switches[n, i, j, k] = window.argmax()
    return pooled, switches


def unpool_by_loop(x, switches, shape):
    """Writes value by value into zeros."""
    switches = np.asarray(switches)
    x = np.asarray(x)
    painted = np.zeros((x.shape[0], *shape, x.shape[3]), x.dtype)
    for n, i, j, k in np.ndindex(*x.shape):
        row, column = divmod(int(switches[n, i, j, k]), 2)
        painted[n, 2 * i + row, 2 * j + column, k] = x[n, i, j, k]
    return painted


def make_ties(rng, size):
    """Small integers: most windows have several maxima."""
    return jnp.asarray(rng.integers(-1, 2, (2, *size, 3)), jnp.float32)


def make_normal(rng, shape):
    """Standard normal, almost surely without ties."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size", SIZES)
def test_pooling_equals_a_loop_with_the_first_of_equals(rng, size):
    for x in (make_ties(rng, size), make_normal(rng, (2, *size, 3))):
        pooled, switches = pool(x)
        expected = pool_by_loop(x)
        np.testing.assert_array_equal(pooled, expected[0])
        np.testing.assert_array_equal(switches, expected[1])
        assert switches.dtype == jnp.uint8


def test_all_sixteen_patterns_of_ties():
    windows = np.array(list(itertools.product((0.0, 1.0), repeat=4)), np.float32)
    _, switches = pool(jnp.asarray(windows.reshape(16, 2, 2, 1)))
    np.testing.assert_array_equal(switches.reshape(-1), windows.argmax(axis=1))


@pytest.mark.parametrize("size", SIZES)
def test_unpooling_equals_a_loop(rng, size):
    _, switches = pool(make_ties(rng, size))
    values = make_normal(rng, switches.shape)
    unpooled = unpool(values, switches, size)
    np.testing.assert_array_equal(unpooled, unpool_by_loop(values, switches, size))


@pytest.mark.parametrize("size", SIZES)
def test_a_filled_window_holds_a_share_of_the_value(rng, size):
    _, switches = pool(make_ties(rng, size))
    values = make_normal(rng, switches.shape)
    found = iterinf.max_unpool(values, switches, size, fill=0.25)
    everywhere = sum(
        unpool_by_loop(values, np.full_like(switches, i), size) for i in range(4)
    )
    at_switches = unpool_by_loop(values, switches, size)
    np.testing.assert_allclose(found, 0.25 * everywhere + 0.75 * at_switches, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_unpooling_the_pooled_keeps_the_maxima_in_place(rng, size):
    x = make_normal(rng, (2, *size, 3))
    pooled, switches = pool(x)
    unpooled = np.asarray(unpool(pooled, switches, size))
    kept = unpooled != 0
    np.testing.assert_array_equal(unpooled[kept], np.asarray(x)[kept])
    assert kept.sum() == pooled.size
    np.testing.assert_array_equal(pool(jnp.where(kept, x, -np.inf))[0], pooled)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_dtype_is_kept(rng, dtype):
    x = jnp.asarray(rng.normal(size=(1, 5, 4, 2)), dtype)
    pooled, switches = pool(x)
    assert pooled.dtype == dtype
    assert unpool(pooled, switches, (5, 4)).dtype == dtype


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_the_gradient_equals_that_of_max_pool_without_ties(rng, size):
    x = jnp.asarray(rng.permutation(2 * size[0] * size[1] * 3), jnp.float32)
    x = x.reshape(2, *size, 3)
    weights = make_normal(rng, (2, size[0] // 2, size[1] // 2, 3))

    def differentiate(maximum):
        return jax.jit(jax.grad(lambda x: jnp.sum(weights * maximum(x))))(x)

    np.testing.assert_array_equal(
        differentiate(lambda x: pool(x)[0]),
        differentiate(lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    )


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_at_ties_the_gradient_goes_to_the_switch_alone(rng, size):
    x = make_ties(rng, size)
    pooled, pull_back = jax.vjp(lambda x: pool(x)[0], x)
    cotangent = make_normal(rng, pooled.shape)
    switches = pool_by_loop(x)[1]
    np.testing.assert_array_equal(
        pull_back(cotangent)[0], unpool_by_loop(cotangent, switches, size)
    )


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_the_gradient_of_unpooling_reads_where_the_switches_point(rng, size):
    _, switches = pool(make_ties(rng, size))
    values = make_normal(rng, switches.shape)
    weights = make_normal(rng, (2, *size, 3))
    gradient = jax.grad(
        lambda values: jnp.sum(weights * unpool(values, switches, size))
    )(values)
    expected = np.zeros(switches.shape, np.float32)
    weights, switches = np.asarray(weights), np.asarray(switches)
    for n, i, j, k in np.ndindex(*switches.shape):
        row, column = divmod(int(switches[n, i, j, k]), 2)
        expected[n, i, j, k] = weights[n, 2 * i + row, 2 * j + column, k]
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("shape", [(5, 8), (8, 8), (6, 7), (6, 10), (3, 4), (0, 0)])
def test_a_shape_that_the_windows_do_not_tile_is_refused(shape):
    x = jnp.zeros((1, 3, 4, 2))
    with pytest.raises(ValueError, match=r"\(3, 4\) windows"):
        unpool(x, x.astype(jnp.uint8), shape)


@pytest.mark.parametrize("shape", [(6, 8), (7, 8), (6, 9), (7, 9)])
def test_an_odd_last_row_or_column_is_zero(rng, shape):
    x = jnp.asarray(rng.uniform(1, 2, (1, 3, 4, 2)), jnp.float32)
    switches = jnp.asarray(rng.integers(0, 4, x.shape), jnp.uint8)
    unpooled = unpool(x, switches, shape)
    np.testing.assert_array_equal(unpooled, unpool_by_loop(x, switches, shape))
    assert not np.any(unpooled[:, 6:])
    assert not np.any(unpooled[:, :, 8:])


@pytest.mark.parametrize("case", ["even", "odd", "mixed"])
def test_arrays_made_by_pytorch(case):
    x, pooled, values, unpooled = (
        jnp.asarray(BY_PYTORCH[f"{case}_{name}"])
        for name in ("x", "pooled", "values", "unpooled")
    )
    found, switches = pool(x)
    np.testing.assert_array_equal(found, pooled)
    np.testing.assert_array_equal(unpool(values, switches, x.shape[1:3]), unpooled)


@pytest.mark.parametrize("size", SIZES[:3])
def test_pytorch_itself(rng, size):
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: only its stored arrays are compared"
    )
    x = make_ties(rng, size)
    pooled, indices = torch.nn.functional.max_pool2d(
        torch.from_numpy(np.array(x.transpose(0, 3, 1, 2))), 2, return_indices=True
    )
    unpooled = torch.nn.functional.max_unpool2d(2 * pooled, indices, 2, None, 0, size)
    found, switches = pool(x)
    np.testing.assert_array_equal(found, pooled.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(
        unpool(2 * found, switches, size),
        unpooled.numpy().transpose(0, 2, 3, 1),
    )
