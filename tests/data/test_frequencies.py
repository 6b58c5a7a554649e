"""Median-frequency weights by hand, and CamVid's as published."""

import pathlib

import numpy as np
import pytest

from iterinf.data.camvid import load_camvid
from iterinf.data.camvid_frames import CLASSES
from iterinf.data.frequencies import compute_median_frequency_weights
from iterinf.data.summary import count_records

CAMVID = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "camvid"


def test_weights_by_hand():
    """Class 0: 3 of 7 labelled pixels, 1: 2 of 3, 2: 2 of 4."""
    weights = compute_median_frequency_weights(np.array([[1, 2, 0], [2, 0, 2]]))
    frequencies = np.array([3 / 7, 2 / 3, 2 / 4])
    np.testing.assert_allclose(weights, 0.5 / frequencies)


def test_a_class_that_never_occurs_weighs_nothing():
    weights = compute_median_frequency_weights(np.array([[2, 0, 0, 0], [1, 0, 1, 0]]))
    np.testing.assert_allclose(weights, [5 / 6, 0, 5 / 4, 0])


@pytest.mark.skipif(not CAMVID.exists(), reason="CamVid is not beside the checkout")
def test_rare_classes_of_camvid_weigh_most():
    pixels = count_records(load_camvid(str(CAMVID), scale=4).train, 11).pixels[:, :-1]
    weights = dict(zip(CLASSES, compute_median_frequency_weights(pixels), strict=True))
    assert weights["sidewalk"] == pytest.approx(1.0)  # the median class
    order = sorted(weights, key=weights.get)
    assert order[:2] == ["road", "building"]
    assert set(order[-2:]) == {"pedestrian", "bicyclist"}
