"""Numbers of connected components, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from iterinf.ops.components import count_components
from tests.fixtures.by_scipy import count_by_scipy


def draw_spiral(size):
    """A path of one pixel's width: the longest region that fits."""
    spiral = np.zeros((size, size), np.uint8)
    row, column, step = 0, 0, (0, 1)
    spiral[0, 0] = 1
    turns = 0
    while turns < 2:
        ahead = row + 2 * step[0], column + 2 * step[1]
        inside = all(0 <= x < size for x in ahead)
        near = row + step[0], column + step[1]
        free = all(0 <= x < size for x in near) and not spiral[near]
        if free and not (inside and spiral[ahead]):
            row, column = near
            spiral[row, column] = 1
            turns = 0
        else:
            step, turns = (step[1], -step[0]), turns + 1
    return spiral


@pytest.mark.parametrize("k", [1, 2, 3, 11])
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (24, 31), (48, 64)])
def test_equals_scipy(rng, size, k):
    count = jax.jit(count_components)
    for smooth in (0, 2):
        noise = ndimage.gaussian_filter(
            rng.normal(size=(k, *size)), (0, smooth, smooth)
        )
        labels = noise.argmax(axis=0).astype(np.uint8)
        valid = rng.random(size) < 0.9
        assert count(labels, valid) == count_by_scipy(labels, valid)


def test_a_long_path_is_one_region():
    spiral = jnp.asarray(draw_spiral(41))
    valid = jnp.ones(spiral.shape, bool)
    assert spiral.sum() > 700
    assert count_components(spiral, valid) == 2


def test_images_of_a_batch_are_counted_each(rng):
    labels = jnp.asarray(rng.integers(0, 3, (4, 9, 7)))
    valid = labels < 2
    found = jax.vmap(count_components)(labels, valid)
    for i in range(4):
        expected = count_by_scipy(np.asarray(labels[i]), np.asarray(valid[i]))
        assert found[i] == expected


def test_nothing_valid_is_no_region():
    labels = jnp.zeros((3, 4), jnp.int32)
    assert count_components(labels, jnp.zeros((3, 4), bool)) == 0
