"""Confusion matrices, and the IoU and accuracy computed from them.

IoU and accuracy are computed from one confusion matrix [truth, prediction] summed over
the split, never as a mean over batches or images.
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
    """Computes the confusion matrix of a prediction.

    C[i, j] = number of pixels with label i that are predicted as j

    Args:
      labels: The labels, of any shape; 0..k-1, all other values are void and ignored.
      predictions: The predicted classes 0..k-1, of the same shape. Inside `jit` or
        `vmap` they are not checked, and pixels with other values are ignored.
      num_classes: The number k of classes.

    Raises:
      ValueError: If the shapes differ, or a non-void pixel has an invalid prediction.
    """
    if jnp.shape(labels) != jnp.shape(predictions):
        raise ValueError(
            f"labels have shape {jnp.shape(labels)}, but predictions have shape "
            f"{jnp.shape(predictions)}"
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
    """Returns values as int32, and the mask of those that are classes."""
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
            f"predictions contain class {predictions[unknown][0]}, expected 0 to "
            f"{num_classes - 1}"
        )


def mean_iou(confusion: Int[Array, "k k"]) -> Float[Array, ""]:
    """Computes the mean intersection over union of the classes that occur.

    IoU_k = C[k, k] / (sum_j C[k, j] + sum_i C[i, k] - C[k, k])

    Args:
      confusion: The confusion matrix [truth, prediction], summed over the whole split.

    Returns:
      A fraction. Classes absent from truth and prediction are excluded from the mean;
      nan if all are absent.
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
    """Computes the IoU of each class; nan if absent from truth and prediction."""
    return divide(*compute_overlaps(confusion))


def compute_mean_iou(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch"]:
    """Computes the mean IoU of the classes that occur; nan if none does."""
    return average_present(compute_class_iou(confusion))


def compute_global_accuracy(
    confusion: Int[np.ndarray, "*batch k k"],
) -> Float[np.ndarray, "*batch"]:
    """Computes the share of correct non-void pixels, trace(C) / sum(C), or nan."""
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return divide(right, confusion.sum(axis=(-2, -1)))


def compute_overlaps(
    confusion: Int[np.ndarray, "*batch k k"],
) -> tuple[Int[np.ndarray, "*batch k"], Int[np.ndarray, "*batch k"]]:
    """Computes intersection and union of truth and prediction in pixels per class."""
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.int64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - intersection
    return intersection, union


def average_present(iou: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch"]:
    """Computes the mean over the classes that are not nan."""
    return divide(np.nansum(iou, axis=-1), (~np.isnan(iou)).sum(axis=-1))


def divide(
    numerator: Real[np.ndarray | np.number, "*shape"],
    denominator: Real[np.ndarray | np.number, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Divides elementwise; nan where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)
