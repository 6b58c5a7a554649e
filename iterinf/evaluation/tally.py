"""What is counted of every image, on the device: all that a table's columns need.

Axes: h w pixels, k classes, bins of confidence.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Num

from iterinf.ops.boundaries import Boundaries, compute_boundary_f1, locate_boundaries
from iterinf.ops.components import count_components
from iterinf.ops.metrics import confusion_matrix

NUM_BINS = 15  # of confidence, of one width
_LOWEST_PROBABILITY = 1e-7


class Spec(NamedTuple):
    """How images are counted; hashable, as a static argument must be."""

    num_classes: int
    boundary_tolerance: float | None  # of the image diagonal; None: not counted
    details: bool = False  # whether `Details` are counted too, which takes longer


class Truth(NamedTuple):
    """What is known of an image's label map before any prediction."""

    label: Integer[Array, "h w"]  # k and above: void
    boundaries: Boundaries | None
    num_components: Int[Array, ""]  # 0 unless there are details


class Details(NamedTuple):
    """What only final numbers need; arrays of JAX or, on the host, of NumPy."""

    negative_log_likelihood: Any  # float32 [*n]: -log y_label, summed over pixels
    # float32 [*n bins 3]: pixels, the sum of their confidence, how many are right
    calibration: Any
    num_components: Any  # int32 [*n]: connected regions of the prediction
    num_true_components: Any  # int32 [*n]


class Tally(NamedTuple):
    """What is counted of an image, or of many: leading axes n. Void is left out."""

    confusion: Any  # int32 [*n k k]: [truth, prediction]
    boundary_f1: Any  # float32 [*n]; nan: the truth has no boundary
    details: Details | None


def prepare_truth(label: Integer[Array, "h w"], spec: Spec) -> Truth:
    """Computes once per image what every prediction is compared with."""
    valid = label < spec.num_classes
    return Truth(
        label,
        _locate(label, label, spec),
        count_components(label, valid) if spec.details else jnp.int32(0),
    )


def tally_image(truth: Truth, y: Float[Array, "h w k"], spec: Spec) -> Tally:
    """Counts what one prediction has right.

    Args:
      truth: from `prepare_truth`, with the same spec.
      y: class probabilities; the largest is the prediction.
      spec: what to count.
    """
    prediction = jnp.argmax(y, axis=-1)
    boundary_f1 = jnp.float32(jnp.nan)
    found = _locate(truth.label, prediction, spec)
    if truth.boundaries is not None and found is not None:
        boundary_f1 = compute_boundary_f1(truth.boundaries, found, spec.num_classes)
    return Tally(
        confusion_matrix(truth.label, prediction, spec.num_classes),
        boundary_f1,
        _tally_details(truth, y, prediction, spec) if spec.details else None,
    )


def _locate(
    label: Integer[Array, "h w"], classes: Integer[Array, "h w"], spec: Spec
) -> Boundaries | None:
    if spec.boundary_tolerance is None:
        return None
    radius = spec.boundary_tolerance * math.hypot(*label.shape)
    valid = label < spec.num_classes
    return locate_boundaries(classes, valid, spec.num_classes, radius)


def _tally_details(
    truth: Truth, y: Float[Array, "h w k"], prediction: Int[Array, "h w"], spec: Spec
) -> Details:
    valid = truth.label < spec.num_classes
    label = jnp.where(valid, truth.label, 0).astype(jnp.int32)
    likelihood = jnp.take_along_axis(y, label[..., None], axis=-1)[..., 0]
    surprise = -jnp.log(jnp.maximum(likelihood, _LOWEST_PROBABILITY))
    confidence = jnp.max(y, axis=-1)
    bins = jnp.clip((confidence * NUM_BINS).astype(jnp.int32), 0, NUM_BINS - 1)
    weights = (jnp.ones_like(y[..., 0]), confidence, prediction == label)
    place = jnp.where(valid, bins, NUM_BINS)
    # Row by row: a sum of all pixels, one after the other, would lose their digits.
    count_rows = jax.vmap(partial(jnp.bincount, length=NUM_BINS + 1))
    sums = [count_rows(place, x.astype(jnp.float32)).sum(axis=0) for x in weights]
    return Details(
        jnp.sum(surprise, where=valid),
        jnp.stack(sums, axis=-1)[:-1],
        count_components(prediction, valid),
        truth.num_components,
    )


def pack(name: str, tally: Tally) -> dict[str, Num[np.ndarray, "..."]]:
    """Names the arrays of a tally for an .npz file; confusions by the bare name."""
    arrays = {name: tally.confusion, f"{name}/boundary_f1": tally.boundary_f1}
    if tally.details is not None:
        fields = tally.details._asdict().items()
        arrays |= {f"{name}/{key}": array for key, array in fields}
    return {key: np.asarray(array) for key, array in arrays.items()}


def unpack(arrays: dict[str, Num[np.ndarray, "..."]], name: str) -> Tally:
    """Reads what `pack` has named; details must be there."""
    details = Details(*(arrays[f"{name}/{field}"] for field in Details._fields))
    return Tally(arrays[name], arrays[f"{name}/boundary_f1"], details)
