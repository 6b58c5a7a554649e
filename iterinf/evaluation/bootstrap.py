"""Paired bootstrap intervals of differences between two models."""

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
    """Computes a difference between two models and its paired block-bootstrap interval.

    A resample draws as many blocks as there are, with replacement, and sums both
    models' counts over the images of these blocks; the interval is between the
    (1 -/+ level) / 2 quantiles of the difference. Blocks keep correlated frames of a
    clip together. Training seeds are not covered.

    Resampled sums are the product of a [resamples, blocks] matrix of counts and the
    sums of each block, which is exact in float64 for pixel counts up to 2^53.

    Args:
      measure: The measure to compare.
      baseline: The tally [n] of the baseline.
      refined: The tally [n] of the other model, on the same images in the same order.
      blocks: The block of each image, any integers.
      num_resamples: The number of resamples.
      seed: The seed of NumPy's default generator.
      level: The confidence level, a fraction.

    Returns:
      The difference refined - baseline and its interval, in the measure's unit; nan if
      the measure is undefined, e.g. boundary F1 without boundaries.

    Raises:
      ValueError: If the tallies differ in truth, or in length from `blocks`.
    """
    before, after = baseline.confusion, refined.confusion
    if before.shape != after.shape or len(blocks) != len(before):
        raise ValueError(
            f"{len(blocks)} blocks and confusion matrices of shapes {before.shape} and "
            f"{after.shape}, expected one of each per image"
        )
    if not np.array_equal(before.sum(axis=-1), after.sum(axis=-1)):
        raise ValueError("the models were not run on the same images in the same order")
    names, block_of_image = np.unique(np.asarray(blocks), return_inverse=True)
    num_blocks = len(names)
    # Drawing blocks with replacement is drawing their multinomial counts.
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
    if not known.size:  # e.g. no label map has boundaries
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    gain = compute_measure(measure, refined) - compute_measure(measure, baseline)
    return Interval(*(float(measure.unit * value) for value in (gain, low, high)))
