"""Image segmentation by iterative inference (Romero et al. 2017), in JAX and Flax."""

import os
import pathlib
from typing import TYPE_CHECKING

from iterinf.inference import refine, refine_step, sweep
from iterinf.ops.metrics import confusion_matrix, mean_iou
from iterinf.ops.switches import max_pool_with_switches, max_unpool
from iterinf.refiners import create_refiner
from iterinf.refiners.functional import dense_crf
from iterinf.segmenters import create_segmenter
from iterinf.types import Batch, Candidate, Refinement

if TYPE_CHECKING:
    from iterinf.prediction.predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Candidate",
    "Refinement",
    "confusion_matrix",
    "create_refiner",
    "create_segmenter",
    "dense_crf",
    "load",
    "max_pool_with_switches",
    "max_unpool",
    "mean_iou",
    "refine",
    "refine_step",
    "sweep",
]


def load(
    workdir: str | os.PathLike[str],
    refiner: str | None = None,
    scale: float | None = None,
) -> "Predictor":
    """Loads the networks of a finished workdir; needs no data.

    Args:
      workdir: The workdir of an experiment after `--mode=sweep` or a later stage.
      refiner: A key of its config's `refiner`; None for the last row of its table.
      scale: The factor by which images are resized for the networks; None resizes them
        to the area of the training images.

    Returns:
      A predictor with a method `predict(image)`, see
      `iterinf.prediction.predictor.Predictor`.

    Raises:
      UserError: If the workdir has no such refiner or no choice for it.
    """
    from iterinf.prediction.pipeline import read_pipeline  # Orbax imports slowly
    from iterinf.prediction.predictor import Predictor

    return Predictor(read_pipeline(pathlib.Path(workdir), refiner), scale)
