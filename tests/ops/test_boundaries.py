"""Boundary F1 by hand, and against SciPy's distance transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.ops.boundaries import (
    compute_boundary_f1,
    find_boundaries,
    locate_boundaries,
)
from tests.fixtures.by_scipy import compute_by_scipy


def draw_maps(rng, size, k, noise):
    """A blocky truth with void, and a prediction that is wrong in places."""
    height, width = size
    blocks = rng.integers(0, k, (-(-height // 6), -(-width // 6)))
    truth = np.kron(blocks, np.ones((6, 6), int))[:height, :width]
    moved = np.roll(truth, rng.integers(-2, 3, 2), axis=(0, 1))
    prediction = np.where(rng.random(size) < noise, rng.integers(0, k, size), moved)
    label = np.where(rng.random(size) < 0.1, k + 3, truth)
    label[:4, :3] = 255
    return label.astype(np.uint8), prediction.astype(np.uint8)


@functools.partial(jax.jit, static_argnums=(2, 3))
def compute(label, prediction, k, radius):
    """Boundary F1 as evaluation has it: void is left out of both maps."""
    valid = label < k
    truth, found = (locate_boundaries(x, valid, k, radius) for x in (label, prediction))
    return compute_boundary_f1(truth, found, k)


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.2, 1.5, 2.25, 4.5])
@pytest.mark.parametrize(("size", "k"), [((24, 31), 5), ((17, 12), 2), ((20, 26), 70)])
def test_equals_distance_transforms(rng, size, k, radius):
    for noise in (0.0, 0.02, 0.5):
        label, prediction = draw_maps(rng, size, k, noise)
        found = compute(label, prediction, k, radius)
        expected = compute_by_scipy(label, prediction, k, radius)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_boundaries_are_on_both_sides_and_never_at_void():
    labels = jnp.array([[0, 0, 1, 1, 9, 2]])
    found = find_boundaries(labels, labels < 9)
    np.testing.assert_array_equal(found, [[0, 1, 1, 0, 0, 0]])


def test_by_hand():
    """A vertical boundary one pixel off is missed at radius 0, found at radius 1."""
    label = jnp.array([[0, 0, 0, 1, 1, 1]] * 4)
    prediction = jnp.array([[0, 0, 1, 1, 1, 1]] * 4)
    assert compute(label, prediction, 2, 0.0) == 0
    assert compute(label, prediction, 2, 1.0) == 1
    assert compute(label, label, 2, 0.0) == 1
    flat = jnp.zeros_like(label)  # class 1 is not predicted, class 0 has no boundary
    assert compute(label, flat, 2, 9.0) == 0
    assert jnp.isnan(compute(flat, prediction, 2, 1.0))


def test_a_radius_beyond_the_image_reaches_everything(rng):
    label, prediction = draw_maps(rng, (6, 9), 2, 0.3)
    found = compute(label, prediction, 2, 30.0)
    np.testing.assert_allclose(found, compute_by_scipy(label, prediction, 2, 30.0))
