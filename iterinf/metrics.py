"""Confusion matrices on the device, and what is read off them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer


def confusion_matrix(
    labels: Integer[Array, "..."], predictions: Integer[Array, "..."], num_classes: int
) -> Int[Array, "k k"]:
    """Counts pixels by truth and prediction.

    C[i, j] = number of pixels with label i that are predicted as j

    Args:
      labels: classes 0..k-1; all others are void and left out. Any shape.
      predictions: classes 0..k-1, of the same shape.
      num_classes: k.

    Returns:
      [truth, prediction], int32. Sums over images are exact.

    Raises:
      ValueError: if the shapes differ.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} differ in shape"
        )
    pairs = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    void = num_classes * num_classes
    valid = (labels >= 0) & (labels < num_classes)
    pairs = jnp.where(valid, pairs, void).reshape(-1)
    counts = jnp.bincount(pairs, length=void + 1)[:void]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)


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
