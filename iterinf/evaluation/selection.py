"""The choice of step size and number of iterations on the validation split."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iterinf.errors import UserError
from iterinf.evaluation.measures import BOUNDARY_F1, compute_measure
from iterinf.evaluation.tally import Tally
from iterinf.ops.metrics import compute_mean_iou
from iterinf.types import Selection


class Curves(NamedTuple):
    """Measures of a split after t + 1 iterations with every step size; fractions."""

    mean_iou: Float[np.ndarray, "s t"]
    boundary_f1: Float[np.ndarray, "s t"]


def compute_curves(tally: Tally) -> Curves:
    """Computes mean IoU and boundary F1 of a split from its tally [n s t]."""
    boundary_f1 = compute_measure(BOUNDARY_F1, tally)
    return Curves(compute_mean_iou(tally.confusion.sum(axis=0)), boundary_f1)


def select(
    curves: Curves, step_sizes: Sequence[float], metric: str = "mean_iou"
) -> Selection:
    """Chooses the pair with the highest metric; ties go to fewer iterations.

    Iteration 0, the segmenter alone, is never chosen.

    Raises:
      UserError: If no value is defined.
    """
    values = getattr(curves, metric)
    if np.isnan(values).all():
        raise UserError(
            "selection.metric is 'boundary_f1', but no validation label map has a "
            "boundary; expected 'mean_iou'"
            if metric == "boundary_f1"
            else "every validation image stops at the first step, so no iteration can "
            "be chosen; lower selection.stop or set selection.count_stopped"
        )
    known = np.nan_to_num(values, nan=-1.0)  # nan: no image is left to count
    iteration, s = divmod(int(np.argmax(known.T)), len(step_sizes))
    mean_iou, boundary_f1 = (float(curve[s, iteration]) for curve in curves)
    return Selection(step_sizes[s], iteration + 1, mean_iou, {}, boundary_f1)
