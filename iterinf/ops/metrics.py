"""Confusion matrices, counted on the device, and what is read off them.

IoU and accuracy come from one confusion matrix [truth, prediction] summed over the
split, never from a mean over batches or images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer, Real


def confusion_matrix(
    labels: Integer[ArrayLike, "..."],
    predictions: Integer[ArrayLike, "..."],
    num_classes: int,
) -> Int[Array, "k k"]:
    """Counts pixels by truth and prediction.

    C[i, j] = number of pixels with label i that are predicted as j

    Args:
      labels: classes 0..k-1; all others are void and left out. Any shape.
      predictions: classes 0..k-1, of the same shape. Traced ones, inside `jit` or
        `vmap`, are not checked: a pixel predicted as another class is left out there.
      num_classes: k.

    Returns:
      [truth, prediction], int32. Sums over images are exact.

    Raises:
      ValueError: if the shapes differ, or a pixel that is not void is predicted as a
        class that does not exist.
    """
    if jnp.shape(labels) != jnp.shape(predictions):
        raise ValueError(
            f"labels {jnp.shape(labels)} and predictions {jnp.shape(predictions)} "
            "differ in shape"
        )
    is_traced = any(isinstance(x, jax.core.Tracer) for x in (labels, predictions))
    if not is_traced:
        _check_predictions(np.asarray(labels), np.asarray(predictions), num_classes)
    truth, valid = _to_classes(labels, num_classes)
    prediction, known = _to_classes(predictions, num_classes)
    void = num_classes * num_classes
    pairs = jnp.where(valid & known, truth * num_classes + prediction, void).reshape(-1)
    counts = jnp.bincount(pairs, length=void + 1)[:void]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)


def _to_classes(
    values: Integer[ArrayLike, "..."], num_classes: int
) -> tuple[Int[Array, "..."], Bool[Array, "..."]]:
    """Values as int32, and which of them are classes; compared in their own dtype."""
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    is_class = (values >= 0) & (values < num_classes)
    return jnp.asarray(values).astype(jnp.int32), jnp.asarray(is_class)


def _check_predictions(
    labels: Integer[np.ndarray, "..."],
    predictions: Integer[np.ndarray, "..."],
    num_classes: int,
) -> None:
    counted = (labels >= 0) & (labels < num_classes)
    unknown = counted & ((predictions < 0) | (predictions >= num_classes))
    if unknown.any():
        raise ValueError(
            f"predictions hold class {predictions[unknown][0]}, expected 0 to "
            f"{num_classes - 1}"
        )


def mean_iou(confusion: Int[Array, "k k"]) -> Float[Array, ""]:
    """Mean intersection over union of the classes that occur.

    IoU_k = C[k, k] / (sum_j C[k, j] + sum_i C[i, k] - C[k, k])

    Args:
      confusion: [truth, prediction], summed over the whole split.

    Returns:
      A fraction. A class absent from truth and prediction is left out of the mean;
      nan if all are.
    """
    confusion = jnp.asarray(confusion).astype(jnp.float32)
    intersection = jnp.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    present = union > 0
    iou = jnp.where(present, intersection / jnp.where(present, union, 1.0), 0.0)
    return iou.sum() / present.sum()


def compute_class_iou(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch k"]:
    """Intersection over union of each class.

    IoU_k = C[k, k] / (sum_j C[k, j] + sum_i C[i, k] - C[k, k])

    Args:
      confusion: [truth, prediction], summed over the whole split.

    Returns:
      Fractions; nan where a class is absent from truth and prediction.
    """
    return divide(*compute_overlaps(confusion))


def compute_mean_iou(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch"]:
    """Mean of `compute_class_iou` over the classes that occur.

    Returns:
      Fractions; nan where no class occurs. A 0-d array for one matrix.
    """
    return average_present(compute_class_iou(confusion))


def compute_global_accuracy(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch"]:
    """Share of the non-void pixels that are right: trace(C) / sum(C).

    Returns:
      Fractions; nan where there is no pixel. A 0-d array for one matrix.
    """
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return divide(right, confusion.sum(axis=(-2, -1)))


def compute_overlaps(
    confusion: Int[np.ndarray, "*batch k k"],
) -> tuple[Int[np.ndarray, "*batch k"], Int[np.ndarray, "*batch k"]]:
    """Intersection and union of truth and prediction, in pixels, a class."""
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.int64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - intersection
    return intersection, union


def average_present(iou: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch"]:
    """Mean over the classes that are not nan."""
    return divide(np.nansum(iou, axis=-1), (~np.isnan(iou)).sum(axis=-1))


def divide(
    numerator: Real[np.ndarray | np.number, "*shape"],
    denominator: Real[np.ndarray | np.number, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Divides; nan where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)
