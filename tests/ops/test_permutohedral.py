"""The lattice against a dictionary of vertices in NumPy, and against the exact sum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from iterinf.ops import permutohedral
from iterinf.ops.permutohedral import (
    build_lattice,
    filter_exactly,
    filter_on_lattice,
    fits_lattice,
)

pytestmark = pytest.mark.slow


def find_simplex(point):
    """Barycentric weights and vertices round a point of the hyperplane, by a search.

    A vertex of remainder k has coordinates that are all equal to k modulo v. From that
    of remainder 0 the others are reached by adding k to the v - k largest differences
    and k - v to the others.
    """
    v = len(point)
    for shift in itertools.product((-v, 0, v), repeat=v):
        zero = v * np.round(point / v) + np.array(shift)
        if zero.sum() != 0:
            continue
        order = np.argsort(-(point - zero), kind="stable")
        vertices = [zero]
        for k in range(1, v):
            vertex = zero + k
            vertex[order[v - k :]] -= v
            vertices.append(vertex)
        system = np.vstack([np.array(vertices).T, np.ones(v)])
        weights = np.linalg.lstsq(system, [*point, 1.0], rcond=None)[0]
        if weights.min() > -1e-9:
            return weights, [tuple(vertex.astype(int)) for vertex in vertices]
    raise AssertionError("no simplex holds the point")


def filter_in_numpy(features, values):
    """Adams et al. 2010, section 3, with a dictionary for the hash table."""
    n, d = features.shape
    index = np.arange(1, d + 1)
    basis = np.triu(np.ones((d + 1, d))) - np.diag(index, -1)[:, :d]
    elevate = basis * np.sqrt(2 / 3) * (d + 1) / np.sqrt(index * (index + 1))
    found = [find_simplex(elevate @ feature) for feature in features.astype(float)]
    lattice = {}
    for (weights, vertices), value in zip(found, values, strict=True):
        for weight, vertex in zip(weights, vertices, strict=True):
            lattice[vertex] = lattice.get(vertex, 0) + weight * value
    for j in range(d + 1):
        step = np.ones(d + 1, int)
        step[j] = -d
        blurred = {}
        for vertex, value in lattice.items():
            before = lattice.get(tuple(np.array(vertex) - step), 0)
            after = lattice.get(tuple(np.array(vertex) + step), 0)
            blurred[vertex] = value + (before + after) / 2
        lattice = blurred
    sliced = [
        sum(w * lattice[vertex] for w, vertex in zip(*simplex, strict=True))
        for simplex in found
    ]
    return np.array(sliced) / (1 + 2.0**-d), len(lattice)


run = jax.jit(lambda features, x: filter_on_lattice(build_lattice(features), x))


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("extent", [0.01, 3.0, 300.0])
def test_equals_a_dictionary_of_vertices(rng, d, extent):
    features = rng.uniform(-extent, extent, (60, d)).astype(np.float32)
    values = rng.normal(size=(60, 3)).astype(np.float32)
    expected, num_vertices = filter_in_numpy(features, values)
    lattice = jax.jit(build_lattice)(features)
    assert int(lattice.num_vertices) == num_vertices
    np.testing.assert_allclose(np.sum(lattice.weights, axis=0), 1, atol=1e-4)
    # float32 places a point 300 standard deviations away up to 3e-5 of them.
    np.testing.assert_allclose(run(features, values), expected, atol=2e-4)


def test_neighbors_looked_up_in_chunks_are_those_of_all_at_once(rng, monkeypatch):
    features = jnp.asarray(rng.normal(size=(500, 5)).astype(np.float32))
    expected = build_lattice(features)
    assert 300 < expected.num_vertices < permutohedral._CHUNK
    monkeypatch.setattr(permutohedral, "_CHUNK", 100)
    jax.tree.map(np.testing.assert_array_equal, build_lattice(features), expected)


@pytest.fixture(scope="module")
def filter_both_ways():
    """The lattice, of any size, and its transpose; compiled once."""

    @jax.jit
    def compute(features, x):
        lattice = build_lattice(features)
        found, pull_back = jax.vjp(lambda x: filter_on_lattice(lattice, x), x)
        return found, pull_back(jnp.cos(x))[0]

    shape = jax.ShapeDtypeStruct((4000, 2), jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutohedral, "_SMALLEST", 1)
        return compute.lower(shape, shape).compile()


@pytest.mark.parametrize(
    ("spread", "fewest", "most"),
    [
        (3, 0, 188),
        (15, 188, 375),
        (21, 375, 750),
        (30, 750, 1500),
        (43, 1500, 3000),
        (62, 3000, 6000),
        (400, 6000, 12000),
    ],
)
def test_every_size_of_the_lattice_gives_the_same(
    rng, filter_both_ways, spread, fewest, most
):
    """Each number of vertices has a program for it, and its transpose."""
    features = rng.uniform(0, spread, (4000, 2)).astype(np.float32)
    values = rng.normal(size=(4000, 2)).astype(np.float32)
    expected, num_vertices = filter_in_numpy(features, values)
    assert fewest < num_vertices <= most
    found, back = filter_both_ways(features, values)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    forth = np.sum(np.cos(values) * expected)
    np.testing.assert_allclose(np.sum(values * back), forth, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(("d", "error"), [(2, 0.01), (5, 0.012)])
def test_is_near_the_exact_gaussian(rng, d, error):
    """Normalised, of values in [0, 1], the mean error is about .01."""
    features = rng.uniform(0, 3, (1500, d)).astype(np.float32)
    values = np.stack([features[:, 0] / 3, np.ones(1500)], axis=1).astype(np.float32)
    approximate = np.asarray(run(features, values))
    exact = np.asarray(jax.jit(filter_exactly)(features, values))
    difference = approximate[:, 0] / approximate[:, 1] - exact[:, 0] / exact[:, 1]
    assert np.abs(difference).mean() < error


def test_exact_filter_is_the_sum_over_all_pairs(rng):
    features = rng.normal(size=(37, 3)).astype(np.float32)
    values = rng.normal(size=(37, 2)).astype(np.float32)
    squares = np.square(features[:, None] - features[None]).sum(axis=-1)
    found = jax.jit(filter_exactly)(features, values)
    np.testing.assert_allclose(found, np.exp(-squares / 2) @ values, atol=1e-5)


def test_gradients_are_those_of_finite_differences(rng):
    features = jnp.asarray(rng.uniform(0, 2, (15, 2)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(15, 2)), jnp.float32)

    @jax.jit
    def compute(scale, values):
        return run(scale * features, values)

    # Piecewise linear in the scale: no vertex may be crossed, hence the small step.
    check_grads(compute, (jnp.float32(1.3), values), 1, ["rev"], 2e-2, 2e-2, eps=1e-3)


def test_second_derivatives_are_right_or_refused(rng):
    features = jnp.asarray(rng.uniform(0, 2, (15, 2)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(15, 2)), jnp.float32)

    def compute(scale, values):
        return jnp.sum(run(scale * features, values) ** 3)

    half = jax.grad(lambda values: compute(1.3, values))
    check_grads(jax.jit(half), (values,), 1, ["rev"], 2e-2, 2e-2, eps=1e-2)
    with pytest.raises(NotImplementedError, match="filter_exactly"):
        jax.grad(jax.grad(compute))(1.3, values)


def test_transposed_filter_is_the_gradient(rng):
    features = jnp.asarray(rng.normal(size=(60, 2)), jnp.float32)
    values, other = jnp.asarray(rng.normal(size=(2, 60, 3)), jnp.float32)
    filtered, transpose = jax.vjp(lambda x: run(features, x), values)
    (transposed,) = transpose(other)
    np.testing.assert_allclose(
        jnp.vdot(other, filtered), jnp.vdot(transposed, values), rtol=1e-4
    )


@pytest.mark.parametrize("batch", [jax.vmap, None], ids=["vmap", "map"])
def test_a_batch_is_its_members(rng, batch):
    features = jnp.asarray(rng.normal(size=(4, 60, 2)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(4, 60, 3)), jnp.float32)
    if batch is None:
        found = jax.jit(lambda *x: jax.lax.map(lambda y: run(*y), x))(features, values)
    else:
        found = jax.jit(batch(run))(features, values)
    for i in range(4):
        np.testing.assert_allclose(found[i], run(features[i], values[i]), atol=1e-5)


def test_equal_points_share_what_they_receive():
    values = jnp.arange(180.0).reshape(60, 3)
    found = run(jnp.zeros((60, 2)), values)
    np.testing.assert_allclose(found, np.tile(found[0], (60, 1)), rtol=1e-6)
    assert found.min() > 0


def test_one_point_is_filtered():
    expected, _ = filter_in_numpy(np.full((1, 2), 0.3), np.ones((1, 1)))
    np.testing.assert_allclose(run(jnp.full((1, 2), 0.3), jnp.ones((1, 1))), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_point_that_has_no_cell_shows(bad):
    features = jnp.zeros((60, 2)).at[3, 1].set(bad)
    assert np.isnan(run(features, jnp.ones((60, 3)))).all()


def test_too_many_cells_show():
    features = jnp.asarray(np.eye(8), jnp.float32) * 6e4
    assert np.isnan(run(features, jnp.ones((8, 1)))).all()
    features = features / 6e3  # 8 fields of at most 8 bits
    assert np.isfinite(run(features, jnp.ones((8, 1)))).all()


@pytest.mark.parametrize("d", [2, 5])
def test_a_box_that_fits_always_has_a_lattice(rng, d):
    """Nowhere is nan in a lattice of points that a box of such sides holds."""
    outcomes = set()
    for scale in 10.0 ** np.arange(0, 6, 0.5):
        extents = scale * rng.uniform(0.1, 1, d)
        corners = np.stack(np.meshgrid(*np.stack([np.zeros(d), extents], 1)), -1)
        lattice = build_lattice(jnp.asarray(corners.reshape(-1, d), jnp.float32))
        fits, is_nan = fits_lattice(extents), bool(jnp.isnan(lattice.weights).any())
        assert not (fits and is_nan)
        outcomes.add((fits, is_nan))
    assert {(True, False), (False, True)} <= outcomes
