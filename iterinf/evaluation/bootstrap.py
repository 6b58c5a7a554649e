"""Paired intervals of differences between two models."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iterinf.evaluation.measures import Measure, compute_measure
from iterinf.evaluation.tally import Tally


class Interval(NamedTuple):
    """A difference and its confidence interval, in the unit of its measure."""

    gain: float
    low: float
    high: float


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
