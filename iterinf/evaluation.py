"""From what was counted of images to a row of the table, on the host.

IoU and accuracy come from one confusion matrix [truth, prediction] summed over the
split, never from a mean over batches or images. Axes: n images, k classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from iterinf.tally import Details, Tally

Sums = Float[np.ndarray, "*r d"]


class Interval(NamedTuple):
    """A difference and its confidence interval, in the unit of its measure."""

    gain: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A value of a model, and its difference to another's with an interval."""

    value: float
    gain: float  # this model's minus the other's
    low: float
    high: float


class Measure(NamedTuple):
    """A number of a split that is a function of sums over images.

    Sums can be resampled: a bootstrap draws images, or blocks of them, with weights.
    """

    unit: float  # 100: given in per cent, differences in points; 1: as it is
    summands: Callable[[Tally], Float[np.ndarray, "*n d"]]  # summed over images
    compute: Callable[[Sums], Float[np.ndarray, "*r"]]  # sums -> value


class Row(NamedTuple):
    """A line of the table; all in per cent, gains in points."""

    model: str
    class_iou: tuple[float, ...]  # k; nan: absent from truth and prediction
    mean_iou: float
    global_accuracy: float
    gain: float  # mean IoU minus the segmenter's; 0 for that itself
    gain_low: float
    gain_high: float
    step_size: float | None  # None: the segmenter alone
    num_iterations: int
    is_control: bool = False  # whether it is there for another row to be compared with
    measures: tuple[tuple[str, Comparison], ...] = ()  # of MEASURES, by name


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


def _count_overlaps(tally: Tally) -> Float[np.ndarray, "*n d"]:
    return np.concatenate(_compute_overlaps(tally.confusion), axis=-1).astype(float)


def _average_iou(sums: Sums) -> Float[np.ndarray, "*r"]:
    intersection, union = np.split(sums, 2, axis=-1)
    return _average_present(_divide(intersection, union))


def _count_boundary_f1(tally: Tally) -> Float[np.ndarray, "*n 2"]:
    known = np.isfinite(tally.boundary_f1)
    values = np.where(known, tally.boundary_f1, 0.0)
    return np.stack([values, known], axis=-1).astype(float)


def _get_details(tally: Tally) -> Details:
    if tally.details is None:
        raise ValueError("this tally has no details")
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
    return _divide(np.abs(confidence - right).sum(axis=-1), pixels.sum(axis=-1))


def _count_components(tally: Tally) -> Float[np.ndarray, "*n 2"]:
    details = _get_details(tally)
    parts = [details.num_components, details.num_true_components]
    return np.stack(parts, axis=-1).astype(float)


def _compute_ratio(sums: Sums) -> Float[np.ndarray, "*r"]:
    return _divide(sums[..., 0], sums[..., 1])


MEAN_IOU = Measure(100.0, _count_overlaps, _average_iou)
BOUNDARY_F1 = Measure(100.0, _count_boundary_f1, _compute_ratio)

# Columns of the table beside mean IoU:
#   boundary_f1    mean over images of `iterinf.ops.boundaries.compute_boundary_f1`
#   nll            negative log-likelihood of the truth, nats per labelled pixel
#   ece            expected calibration error (Guo et al. 2017): with 15 bins b of the
#                  largest probability, sum_b |sum confidence_b - right_b| / pixels
#   fragmentation  connected regions of the predictions / those of the label maps
MEASURES = {
    "boundary_f1": BOUNDARY_F1,
    "nll": Measure(1.0, _count_nll, _compute_ratio),
    "ece": Measure(100.0, _count_calibration, _compute_calibration_error),
    "fragmentation": Measure(1.0, _count_components, _compute_ratio),
}


def compute_measure(measure: Measure, tally: Tally) -> Float[np.ndarray, "*m"]:
    """Computes a measure of a split from its images; a fraction where it is a share.

    Args:
      measure: which.
      tally: [n *m]; sums are over n.
    """
    return measure.compute(measure.summands(tally).sum(axis=0))


def bootstrap(
    measure: Measure,
    baseline: Tally,
    refined: Tally,
    blocks: Sequence[int],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Paired block bootstrap of a difference between two models.

    A resample draws as many blocks as there are, with replacement, and sums both
    models' counts over the images of the drawn blocks; the interval is between the
    (1 -/+ level) / 2 percentiles of the difference. Blocks keep frames of a clip
    together that correlate. Training seeds are not covered.

    A resample is a row of a [resamples, blocks] matrix of counts times the sums of each
    block: exact in float64 for pixel counts up to 2^53.

    Args:
      measure: what is compared.
      baseline: [n], by the segmenter alone, or another row.
      refined: the same images, in the same order, by the other model.
      blocks: the block of each image, any integers.
      num_resamples: draws of the bootstrap.
      seed: of NumPy's default generator.
      level: confidence, a fraction.

    Returns:
      refined - baseline on the split itself and its interval, in the measure's unit;
      nan where the measure is not defined, as boundary F1 without any boundary.

    Raises:
      ValueError: if the two differ in truth, or in length from `blocks`.
    """
    before, after = baseline.confusion, refined.confusion
    if before.shape != after.shape or len(blocks) != len(before):
        raise ValueError(
            f"{len(blocks)} blocks, confusion matrices {before.shape} and "
            f"{after.shape}: expected one of each per image"
        )
    if not np.array_equal(before.sum(axis=-1), after.sum(axis=-1)):
        raise ValueError("the two models were not run on the same images in one order")
    names, block_of_image = np.unique(np.asarray(blocks), return_inverse=True)
    num_blocks = len(names)
    # A resample's multiset of blocks, drawn as the counts themselves.
    draws = (
        np.random.default_rng(seed)
        .multinomial(num_blocks, np.full(num_blocks, 1 / num_blocks), num_resamples)
        .astype(np.float64)
    )

    def resample(tally: Tally) -> Float[np.ndarray, " r"]:
        counts = measure.summands(tally)
        sums = np.zeros((num_blocks, counts.shape[-1]))
        np.add.at(sums, block_of_image, counts)
        return measure.compute(draws @ sums)

    differences = resample(refined) - resample(baseline)
    known = differences[np.isfinite(differences)]
    if not known.size:  # e.g. boundaries where no label map has any
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    gain = compute_measure(measure, refined) - compute_measure(measure, baseline)
    return Interval(*(float(measure.unit * value) for value in (gain, low, high)))


def make_row(
    model: str,
    tally: Tally,
    baseline: Tally,
    blocks: Sequence[int],
    *,
    step_size: float | None = None,
    num_iterations: int = 0,
    is_control: bool = False,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """Makes a line of the table from what was counted of the images of a split.

    The segmenter alone is its own baseline: gains and intervals are then exactly 0.

    Args:
      model: its name in the table.
      tally: [n], with details.
      baseline: the same of the segmenter alone.
      blocks: the bootstrap block of each image.
      step_size: the chosen one; None for the segmenter alone.
      num_iterations: the chosen number; 0 for the segmenter alone.
      is_control: whether another row is compared with it.
      num_resamples: see `bootstrap`.
      seed: see `bootstrap`.
    """
    total = tally.confusion.sum(axis=0)

    def compare(measure: Measure) -> Comparison:
        interval = bootstrap(
            measure, baseline, tally, blocks, num_resamples=num_resamples, seed=seed
        )
        value = float(measure.unit * compute_measure(measure, tally))
        return Comparison(value, *interval)

    mean_iou = compare(MEAN_IOU)
    return Row(
        model=model,
        class_iou=tuple((100 * compute_class_iou(total)).tolist()),
        mean_iou=mean_iou.value,
        global_accuracy=float(100 * compute_global_accuracy(total)),
        gain=mean_iou.gain,
        gain_low=mean_iou.low,
        gain_high=mean_iou.high,
        step_size=None if step_size is None else float(step_size),
        num_iterations=int(num_iterations),
        is_control=is_control,
        measures=tuple((name, compare(m)) for name, m in MEASURES.items()),
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
