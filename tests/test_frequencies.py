"""Median-frequency weights by hand, and CamVid's as published."""

import pathlib

import numpy as np
import pytest

from iterinf.data.camvid import CLASSES, load_camvid
from iterinf.data.dataset import Record, Split
from iterinf.data.frequencies import compute_median_frequency_weights

CAMVID = pathlib.Path(__file__).parent.parent.parent / "shared" / "data" / "camvid"


def make_split(*labels):
    labels = [np.array(label, np.uint8) for label in labels]
    images = [np.zeros((*label.shape, 3), np.uint8) for label in labels]
    return Split(
        lambda i: Record(images[i], labels[i], str(i)),
        [str(i) for i in range(len(labels))],
        range(len(labels)),
    )


def test_weights_by_hand():
    """Class 0: 3 of 7 labelled pixels, 1: 2 of 3, 2: 2 of 4; 3 is void, 4 too."""
    split = make_split([[0, 1], [1, 3]], [[0, 0], [2, 2]])
    weights = compute_median_frequency_weights(split, 3)
    frequencies = np.array([3 / 7, 2 / 3, 2 / 4])
    np.testing.assert_allclose(weights, 0.5 / frequencies)


def test_a_class_that_never_occurs_weighs_nothing():
    weights = compute_median_frequency_weights(make_split([[0, 0], [0, 2]]), 4)
    np.testing.assert_allclose(weights, [2 / 3, 0, 2, 0])


@pytest.mark.skipif(not CAMVID.exists(), reason="CamVid is not beside the checkout")
def test_rare_classes_of_camvid_weigh_most():
    split = load_camvid(str(CAMVID), scale=4).train
    weights = dict(
        zip(CLASSES, compute_median_frequency_weights(split, 11), strict=True)
    )
    assert weights["sidewalk"] == pytest.approx(1.0)  # the median class
    order = sorted(weights, key=weights.get)
    assert order[:2] == ["road", "building"]
    assert set(order[-2:]) == {"pedestrian", "bicyclist"}
