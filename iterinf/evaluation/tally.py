"""Counts per image, computed on the device, from which all measures follow.

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

NUM_BINS = 15  # confidence bins of equal width
_LOWEST_PROBABILITY = 1e-7


class Spec(NamedTuple):
    """The counts to compute; hashable, so that it can be a static argument."""

    num_classes: int
    boundary_tolerance: float | None  # fraction of the image diagonal; None: skip
    details: bool = False  # whether to compute `Details`, which takes longer


class Truth(NamedTuple):
    """An image's label map, with its boundaries and components."""

    label: Integer[Array, "h w"]  # k and above: void
    boundaries: Boundaries | None
    num_components: Int[Array, ""]  # 0 without details


class Details(NamedTuple):
    """Counts for final results only, as JAX or NumPy arrays."""

    negative_log_likelihood: Any  # float32 [*n]: -log y_label, summed over pixels
    # float32 [*n bins 3]: number of pixels, sum of confidence, number correct
    calibration: Any
    num_components: Any  # int32 [*n]: connected regions in the prediction
    num_true_components: Any  # int32 [*n]: connected regions in the label map


class Tally(NamedTuple):
    """The counts of images, with leading axes n. Void pixels are excluded."""

    confusion: Any  # int32 [*n k k]: [truth, prediction]
    boundary_f1: Any  # float32 [*n]; nan: the truth has no boundary
    details: Details | None


def prepare_truth(label: Integer[Array, "h w"], spec: Spec) -> Truth:
    """Computes boundaries and components of a label map, once per image."""
    valid = label < spec.num_classes
    return Truth(
        label,
        _locate(label, label, spec),
        count_components(label, valid) if spec.details else jnp.int32(0),
    )


def tally_image(truth: Truth, y: Float[Array, "h w k"], spec: Spec) -> Tally:
    """Computes the counts of a prediction, the argmax of y."""
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
    # Summing row by row limits the rounding error in float32.
    count_rows = jax.vmap(partial(jnp.bincount, length=NUM_BINS + 1))
    sums = [count_rows(place, x.astype(jnp.float32)).sum(axis=0) for x in weights]
    return Details(
        jnp.sum(surprise, where=valid),
        jnp.stack(sums, axis=-1)[:-1],
        count_components(prediction, valid),
        truth.num_components,
    )


def pack(name: str, tally: Tally) -> dict[str, Num[np.ndarray, "..."]]:
    """Converts a tally to named arrays for an .npz file."""
    arrays = {name: tally.confusion, f"{name}/boundary_f1": tally.boundary_f1}
    if tally.details is not None:
        fields = tally.details._asdict().items()
        arrays |= {f"{name}/{key}": array for key, array in fields}
    return {key: np.asarray(array) for key, array in arrays.items()}


def unpack(arrays: dict[str, Num[np.ndarray, "..."]], name: str) -> Tally:
    """Inverts `pack`, for tallies with details."""
    details = Details(*(arrays[f"{name}/{field}"] for field in Details._fields))
    return Tally(arrays[name], arrays[f"{name}/boundary_f1"], details)
