"""Image segmentation by iterative inference (Romero et al. 2017), in JAX and Flax."""

from iterinf.crf import dense_crf
from iterinf.inference import refine, refine_step, sweep
from iterinf.metrics import confusion_matrix, mean_iou
from iterinf.ops.switches import max_pool_with_switches, max_unpool
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.types import Batch, Candidate, Refinement

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Candidate",
    "Refinement",
    "confusion_matrix",
    "create_refiner",
    "create_segmenter",
    "dense_crf",
    "max_pool_with_switches",
    "max_unpool",
    "mean_iou",
    "refine",
    "refine_step",
    "sweep",
]
