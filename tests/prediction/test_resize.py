"""Sizes and what becomes of values between them."""

import jax
import numpy as np
import pytest

from iterinf.data.dataset import Record, shrink_record
from iterinf.prediction import resize as resizing
from iterinf.prediction.resize import (
    find_labels,
    interpolate,
    resize_channels,
    resize_image,
)

SIZES = [((5, 7), (17, 11)), ((5, 7), (3, 20)), ((6, 4), (6, 4)), ((1, 3), (4, 1))]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_interpolates_between_centres_as_jax_does(old, new, rng):
    y = rng.dirichlet(np.ones(3), old).astype(np.float32)
    expected = jax.image.resize(y, (*new, 3), "linear", antialias=False)
    np.testing.assert_allclose(interpolate(y, new), expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("smooth", [False, True])
def test_labels_are_the_likeliest_of_the_whole(old, new, smooth, rng, monkeypatch):
    y = rng.dirichlet(np.ones(3), old).astype(np.float32)
    if smooth:  # so that neighbours are of one class
        y = interpolate(y, (20, 30))
    expected = interpolate(y, new).argmax(axis=-1)
    for band in (1, 100):
        monkeypatch.setattr(resizing, "_AT_A_TIME", band)
        found = find_labels(y, new)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_probabilities_stay_some(rng):
    y = rng.dirichlet(np.ones(4), (5, 8)).astype(np.float16)
    for size in ((3, 4), (9, 21), (3, 21)):
        for resized in (resize_channels(y, size), interpolate(y.astype("f"), size)):
            assert resized.shape == (*size, 4)
            assert resized.min() >= 0
            np.testing.assert_allclose(resized.sum(axis=-1), 1, atol=2e-3)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_whole_factor_shrinks_as_the_data_sets_do(scale, rng):
    image = rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)
    record = Record(image, np.zeros((12, 18), np.uint8), "")
    expected = shrink_record(record, scale).image
    found = resize_image(image, (12 // scale, 18 // scale))
    assert np.abs(found.astype(int) - expected).max() <= 1  # halves


def test_what_shrinks_is_averaged():
    ramp = np.arange(10, dtype=np.float32).reshape(1, 10, 1)
    np.testing.assert_array_equal(resize_channels(ramp, (1, 10)), ramp)
    found = resize_channels(ramp, (1, 5)).ravel()
    np.testing.assert_allclose(found, [0.5, 2.5, 4.5, 6.5, 8.5])
    stripes = np.tile(np.float32([0, 1]), 20).reshape(1, 40, 1)
    np.testing.assert_allclose(resize_channels(stripes, (1, 16)), 0.5, atol=1e-6)
