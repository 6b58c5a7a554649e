"""Measures of a refiner over its iterations."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iterinf.evaluation.measures import MEAN_IOU, MEASURES, compute_measure
from iterinf.evaluation.tally import unpack
from iterinf.workdir import Arrays


class Curves(NamedTuple):
    """Measures after 0..t iterations, p = t + 1, by name and before their units."""

    # mean_iou and boundary_f1 (which choices of earlier versions lack) by step size.
    validation: dict[str, Float[np.ndarray, "s p"]]
    # mean_iou and `iterinf.evaluation.measures.MEASURES` at the chosen step size.
    test: dict[str, Float[np.ndarray, " p"]]


def join_curves(curve: Arrays, test: Arrays) -> Curves:
    """Puts the start before the iterations of curve.npz and test.npz."""
    validation: dict[str, np.ndarray] = {}
    for name in ("mean_iou", "boundary_f1"):
        if name in curve:
            start = np.full((len(curve[name]), 1), curve[f"initial_{name}"])
            validation[name] = np.concatenate([start, curve[name]], axis=1)
    initial = unpack(test, "initial")
    start = compute_measure(MEAN_IOU, initial)
    tested: dict[str, np.ndarray] = {"mean_iou": np.append(start, test["mean_iou"])}
    for name, measure in MEASURES.items():
        start = compute_measure(measure, initial)
        tested[name] = np.append(start, test[f"curve/{name}"])
    return Curves(validation, tested)
