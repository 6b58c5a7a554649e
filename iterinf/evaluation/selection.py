"""Step size and number of iterations, chosen on the validation split."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iterinf.errors import UserError
from iterinf.evaluation.measures import BOUNDARY_F1, compute_measure
from iterinf.evaluation.tally import Tally
from iterinf.ops.metrics import compute_mean_iou

METRICS = ("mean_iou", "boundary_f1")  # a choice can be made by


class Curves(NamedTuple):
    """Of a split, after t + 1 iterations with every step size; fractions."""

    mean_iou: Float[np.ndarray, "s t"]
    boundary_f1: Float[np.ndarray, "s t"]


class Selection(NamedTuple):
    """A choice made on validation."""

    step_size: float
    num_iterations: int
    mean_iou: float  # there, a fraction
    parameters: dict[str, float]  # chosen with them, by name
    boundary_f1: float | None = None  # there, a fraction; None: by an earlier version


def compute_curves(tally: Tally) -> Curves:
    """Mean IoU and boundary F1 of a split from those of its images.

    Args:
      tally: [n s t].
    """
    boundary_f1 = compute_measure(BOUNDARY_F1, tally)
    return Curves(compute_mean_iou(tally.confusion.sum(axis=0)), boundary_f1)


def select(
    curves: Curves, step_sizes: Sequence[float], metric: str = "mean_iou"
) -> Selection:
    """Chooses the pair with the highest value; of equals, fewer iterations.

    Args:
      curves: on validation.
      step_sizes: s of them.
      metric: which of METRICS is to be high.

    Returns:
      The choice; iteration 0, the segmenter itself, is never chosen.

    Raises:
      UserError: if no number is known.
    """
    values = getattr(curves, metric)
    if np.isnan(values).all() and metric == "boundary_f1":
        raise UserError(
            "no label map of validation has a boundary; choose by selection.metric "
            "mean_iou"
        )
    if np.isnan(values).all():
        raise UserError(
            "every image stops at once: no iteration has any to count; lower "
            "selection.stop, or set selection.count_stopped"
        )
    known = np.nan_to_num(values, nan=-1.0)  # no image is left to count: nan
    iteration, s = divmod(int(np.argmax(known.T)), len(step_sizes))
    mean_iou, boundary_f1 = (float(curve[s, iteration]) for curve in curves)
    return Selection(step_sizes[s], iteration + 1, mean_iou, {}, boundary_f1)
