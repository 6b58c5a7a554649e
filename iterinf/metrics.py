"""Confusion matrices on the device, and what is read off them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer


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
