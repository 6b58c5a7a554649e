"""Measures of a split as functions of sums over its images, computed on the host.

Axes: n images, k classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iterinf.evaluation.tally import Details, Tally
from iterinf.ops.metrics import average_present, compute_overlaps, divide

Sums = Float[np.ndarray, "*r d"]


class Measure(NamedTuple):
    """A measure of a split that is a function of sums over its images.

    A bootstrap can therefore resample images, or blocks of them, by weighted sums.
    """

    unit: float  # 100: reported in per cent; 1: reported as is
    summands: Callable[[Tally], Float[np.ndarray, "*n d"]]  # per image
    compute: Callable[[Sums], Float[np.ndarray, "*r"]]  # sums -> value


def _count_overlaps(tally: Tally) -> Float[np.ndarray, "*n d"]:
    return np.concatenate(compute_overlaps(tally.confusion), axis=-1).astype(float)


def _average_iou(sums: Sums) -> Float[np.ndarray, "*r"]:
    intersection, union = np.split(sums, 2, axis=-1)
    return average_present(divide(intersection, union))


def _count_boundary_f1(tally: Tally) -> Float[np.ndarray, "*n 2"]:
    known = np.isfinite(tally.boundary_f1)
    values = np.where(known, tally.boundary_f1, 0.0)
    return np.stack([values, known], axis=-1).astype(float)


def _get_details(tally: Tally) -> Details:
    if tally.details is None:
        raise ValueError("the tally has no details")
    return tally.details


def _count_nll(tally: Tally) -> Float[np.ndarray, "*n 2"]:
    pixels = tally.confusion.sum(axis=(-2, -1))
    total = _get_details(tally).negative_log_likelihood
    return np.stack([total, pixels], axis=-1).astype(float)


def _count_calibration(tally: Tally) -> Float[np.ndarray, "*n d"]:
    calibration = _get_details(tally).calibration
    return calibration.reshape(*calibration.shape[:-2], -1).astype(float)


def _compute_calibration_error(sums: Sums) -> Float[np.ndarray, "*r"]:
    pixels, confidence, right = np.moveaxis(
        sums.reshape(*sums.shape[:-1], -1, 3), -1, 0
    )
    return divide(np.abs(confidence - right).sum(axis=-1), pixels.sum(axis=-1))


def _count_components(tally: Tally) -> Float[np.ndarray, "*n 2"]:
    details = _get_details(tally)
    parts = [details.num_components, details.num_true_components]
    return np.stack(parts, axis=-1).astype(float)


def _compute_ratio(sums: Sums) -> Float[np.ndarray, "*r"]:
    return divide(sums[..., 0], sums[..., 1])


MEAN_IOU = Measure(100.0, _count_overlaps, _average_iou)
BOUNDARY_F1 = Measure(100.0, _count_boundary_f1, _compute_ratio)

# Columns of the table beside mean IoU:
#   boundary_f1    mean over images of `iterinf.ops.boundaries.compute_boundary_f1`
#   nll            negative log-likelihood of the truth, nats per labelled pixel
#   ece            expected calibration error (Guo et al. 2017): with 15 bins b of the
#                  largest probability, sum_b |sum confidence_b - correct_b| / pixels
#   fragmentation  connected regions in the predictions / in the label maps
MEASURES = {
    "boundary_f1": BOUNDARY_F1,
    "nll": Measure(1.0, _count_nll, _compute_ratio),
    "ece": Measure(100.0, _count_calibration, _compute_calibration_error),
    "fragmentation": Measure(1.0, _count_components, _compute_ratio),
}


def compute_measure(measure: Measure, tally: Tally) -> Float[np.ndarray, "*m"]:
    """Computes a measure of a split [n *m], before multiplication by its unit."""
    return measure.compute(measure.summands(tally).sum(axis=0))
