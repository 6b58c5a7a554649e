"""From confusion matrices of a split to a row of the table, on the host.

Every number comes from one confusion matrix [truth, prediction] summed over the split,
never from a mean over batches or images. Axes: n images, k classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real


class Interval(NamedTuple):
    """A difference of mean IoU and its confidence interval, in points (per cent)."""

    gain: float
    low: float
    high: float


class Row(NamedTuple):
    """A line of the table; all in per cent, gains in points."""

    model: str
    class_iou: tuple[float, ...]  # k; nan: absent from truth and prediction
    mean_iou: float
    global_accuracy: float
    gain: float  # mean IoU minus the plain network's; 0 for that itself
    gain_low: float
    gain_high: float
    step_size: float | None  # None: the plain network, which has none
    num_iterations: int
    is_control: bool = False  # whether it is there for another row to be compared with


def compute_class_iou(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch k"]:
    """Intersection over union of each class.

    IoU_k = C[k, k] / (sum_j C[k, j] + sum_i C[i, k] - C[k, k])

    Args:
      confusion: [truth, prediction], summed over the whole split.

    Returns:
      Fractions; nan where a class is absent from truth and prediction.
    """
    return _divide(*_compute_overlaps(confusion))


def compute_mean_iou(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch"]:
    """Mean of `compute_class_iou` over the classes that occur.

    Returns:
      Fractions; nan where no class occurs. A 0-d array for one matrix.
    """
    return _average_present(compute_class_iou(confusion))


def compute_global_accuracy(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch"]:
    """Share of the non-void pixels that are right: trace(C) / sum(C).

    Returns:
      Fractions; nan where there is no pixel. A 0-d array for one matrix.
    """
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return _divide(right, confusion.sum(axis=(-2, -1)))


def bootstrap_gain(
    baseline: Int[np.ndarray, "n k k"],
    refined: Int[np.ndarray, "n k k"],
    blocks: Sequence[int],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Paired block bootstrap of the difference in mean IoU.

    A resample draws as many blocks as there are, with replacement, and sums both
    models' confusion matrices over the images of the drawn blocks; the interval is
    between the (1 -/+ level) / 2 percentiles of the difference. Blocks keep frames
    of a clip together that correlate. Training seeds are not covered.

    IoU needs intersections and unions only, both sums over images, so a resample is a
    row of a [resamples, blocks] matrix of counts times [blocks, k] pixel counts: exact
    in float64 up to 2^53 pixels.

    Args:
      baseline: [truth, prediction] of each image, by the plain network.
      refined: the same images, in the same order, by the other model.
      blocks: the block of each image, any integers.
      num_resamples: draws of the bootstrap.
      seed: of NumPy's default generator.
      level: confidence, a fraction.

    Returns:
      The difference on the split itself and its interval, in points.

    Raises:
      ValueError: if the two differ in truth, or in length from `blocks`.
    """
    if baseline.shape != refined.shape or len(blocks) != len(baseline):
        raise ValueError(
            f"{len(blocks)} blocks, confusion matrices {baseline.shape} and "
            f"{refined.shape}: expected one of each an image"
        )
    if not np.array_equal(baseline.sum(axis=-1), refined.sum(axis=-1)):
        raise ValueError("the two models were not run on the same images in one order")
    names, block_of_image = np.unique(np.asarray(blocks), return_inverse=True)
    num_blocks = len(names)
    # A resample's multiset of blocks, drawn as the counts themselves.
    counts = np.random.default_rng(seed).multinomial(
        num_blocks, np.full(num_blocks, 1 / num_blocks), size=num_resamples
    )

    def resample(confusions: Int[np.ndarray, "n k k"]) -> Float[np.ndarray, " r"]:
        sums = np.zeros((num_blocks, *confusions.shape[1:]), np.int64)
        np.add.at(sums, block_of_image, confusions)
        intersection, union = _compute_overlaps(sums)
        draws = counts.astype(np.float64)
        return _average_present(_divide(draws @ intersection, draws @ union))

    differences = resample(refined) - resample(baseline)
    low, high = np.nanquantile(differences, [(1 - level) / 2, (1 + level) / 2])
    gain = compute_mean_iou(refined.sum(axis=0)) - compute_mean_iou(
        baseline.sum(axis=0)
    )
    return Interval(float(100 * gain), float(100 * low), float(100 * high))


def make_row(
    model: str,
    confusions: Int[np.ndarray, "n k k"],
    baseline: Int[np.ndarray, "n k k"],
    blocks: Sequence[int],
    *,
    step_size: float | None = None,
    num_iterations: int = 0,
    is_control: bool = False,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """Makes a line of the table out of per-image confusion matrices of a split.

    The plain network is its own baseline: gain and interval are then exactly 0.

    Args:
      model: its name in the table.
      confusions: [truth, prediction] of each image.
      baseline: the same of the plain network.
      blocks: the bootstrap block of each image.
      step_size: the chosen one; None for the plain network.
      num_iterations: the chosen number; 0 for the plain network.
      is_control: whether another row is compared with it.
      num_resamples: see `bootstrap_gain`.
      seed: see `bootstrap_gain`.
    """
    total = confusions.sum(axis=0)
    interval = bootstrap_gain(
        baseline, confusions, blocks, num_resamples=num_resamples, seed=seed
    )
    return Row(
        model=model,
        class_iou=tuple((100 * compute_class_iou(total)).tolist()),
        mean_iou=float(100 * compute_mean_iou(total)),
        global_accuracy=float(100 * compute_global_accuracy(total)),
        gain=interval.gain,
        gain_low=interval.low,
        gain_high=interval.high,
        step_size=None if step_size is None else float(step_size),
        num_iterations=int(num_iterations),
        is_control=is_control,
    )


def _compute_overlaps(
    confusion: Int[np.ndarray, "*batch k k"],
) -> tuple[Int[np.ndarray, "*batch k"], Int[np.ndarray, "*batch k"]]:
    """Intersection and union of truth and prediction, in pixels, a class."""
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.int64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - intersection
    return intersection, union


def _average_present(iou: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch"]:
    """Mean over the classes that are not nan."""
    return _divide(np.nansum(iou, axis=-1), (~np.isnan(iou)).sum(axis=-1))


def _divide(
    numerator: Real[np.ndarray | np.number, "*shape"],
    denominator: Real[np.ndarray | np.number, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Divides; nan where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)
