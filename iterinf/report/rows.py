"""The rows of the results table, from the tallies of a split."""

from collections.abc import Sequence
from typing import NamedTuple

from iterinf.evaluation.bootstrap import bootstrap
from iterinf.evaluation.measures import MEAN_IOU, MEASURES, Measure, compute_measure
from iterinf.evaluation.tally import Tally
from iterinf.ops.metrics import compute_class_iou, compute_global_accuracy


class Comparison(NamedTuple):
    """A model's value of a measure, and its difference from the baseline's."""

    value: float
    gain: float  # this model's value minus the baseline's
    low: float
    high: float


class Row(NamedTuple):
    """A row of the table; values in per cent, gains in percentage points."""

    model: str
    class_iou: tuple[float, ...]  # k; nan: absent from truth and prediction
    mean_iou: float
    global_accuracy: float
    gain: float  # mean IoU minus the segmenter's; 0 for the segmenter alone
    gain_low: float
    gain_high: float
    step_size: float | None  # None: the segmenter alone
    num_iterations: int
    is_control: bool = False  # whether it is a control for another row
    measures: tuple[tuple[str, Comparison], ...] = ()  # by name, a key of MEASURES


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
) -> Row:
    """Creates a row of the table, with the segmenter alone as baseline.

    The segmenter is its own baseline: its gains and intervals are exactly 0. Both
    tallies [n] have details; `blocks` are the bootstrap blocks of the n images.
    """
    total = tally.confusion.sum(axis=0)

    def compare(measure: Measure) -> Comparison:
        interval = bootstrap(
            measure, baseline, tally, blocks, num_resamples=num_resamples
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
        step_size=step_size,
        num_iterations=num_iterations,
        is_control=is_control,
        measures=tuple((name, compare(m)) for name, m in MEASURES.items()),
    )
