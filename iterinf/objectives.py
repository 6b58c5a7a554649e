"""What segmenters and refiners are trained on, and how both are validated."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from iterinf.corruption import check_constraint, corrupt
from iterinf.data.dataset import Split
from iterinf.errors import UserError
from iterinf.losses import (
    LossSum,
    compute_cross_entropy,
    compute_reconstruction_loss,
    encode_labels,
)
from iterinf.metrics import confusion_matrix, mean_iou
from iterinf.training import LossFunction, Params
from iterinf.types import Batch, Candidate

METRICS = ("validation/loss", "validation/mean_iou")  # what validation measures
Variables = dict[str, Any]
Validate = Callable[[Params], dict[str, float]]
Predict = Callable[[Params, Any, Float[Array, "b h w 3"]], Float[Array, "b h w k"]]


def propose(
    segmenter: nn.Module, variables: Variables, images: Float[Array, "b h w 3"]
) -> Candidate:
    """Runs a segmenter for a refiner: y = f_L(x), h = f_l(x) (Eq. 3), no gradient.

    Args:
      segmenter: the network.
      variables: its variables.
      images: RGB in [0, 1].

    Returns:
      The candidate, y as probabilities.
    """
    logits, features = segmenter.apply(variables, images)
    return jax.lax.stop_gradient(Candidate(nn.softmax(logits), features, images))


def make_segmenter_loss(
    segmenter: nn.Module, class_weights: Float[np.ndarray, " k"] | None = None
) -> LossFunction:
    """Cross-entropy of the segmenter's logits, by class weights if there are any."""
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def compute_loss(params, frozen, batch: Batch, key):
        del frozen
        logits, _ = segmenter.apply(
            {"params": params}, batch.image, train=True, rngs={"dropout": key}
        )
        return compute_cross_entropy(logits, batch.label, weights)

    return compute_loss


def make_refiner_loss(
    segmenter: nn.Module,
    refiner: nn.Module,
    *,
    start: str,
    sigma: float,
    constraint: str = "none",
    squared_error: float = 1.0,
    cross_entropy: float = 1.0,
) -> LossFunction:
    """Eq. 5 at a corrupted labelling; `frozen` holds the segmenter's variables.

    Args:
      segmenter: gives y and h.
      refiner: reconstructs the truth from the corrupted labelling and h.
      start: what is corrupted: "y" (training scenario 1 of Figure 1: DAE(y)) or
        "y_true" (scenario 2: DAE(y_true); void pixels are all zeros before noise).
      sigma: of the noise.
      constraint: see `corrupt`.
      squared_error: weight of Eq. 5's first term.
      cross_entropy: weight of its second term.

    Raises:
      UserError: unknown start.
    """
    if start not in ("y", "y_true"):
        raise UserError(f"unknown start {start!r} of a DAE; known: 'y', 'y_true'")
    check_constraint(constraint)

    def compute_loss(params, frozen, batch: Batch, key):
        noise_key, dropout_key = jax.random.split(key)
        candidate = propose(segmenter, frozen, batch.image)
        if start == "y_true":
            truth = encode_labels(batch.label, candidate.y.shape[-1])
            candidate = candidate._replace(y=truth)
        noisy = corrupt(noise_key, candidate.y, sigma=sigma, constraint=constraint)
        reconstruction = refiner.apply(
            {"params": params},
            candidate._replace(y=noisy),
            train=True,
            rngs={"dropout": dropout_key},
        )
        return compute_reconstruction_loss(
            reconstruction,
            batch.label,
            squared_error=squared_error,
            cross_entropy=cross_entropy,
        )

    return compute_loss


def make_reconstruction(segmenter: nn.Module, refiner: nn.Module) -> Predict:
    """One reconstruction of the segmenter's proposal, without noise."""

    def predict(params, frozen, images):
        return refiner.apply({"params": params}, propose(segmenter, frozen, images))

    return predict


def make_validation(
    predict: Predict,
    measure_loss: Callable[[Array, Array], LossSum],
    split: Split,
    *,
    frozen: Any,
    num_classes: int,
    batch_size: int,
) -> Validate:
    """Makes the validation of `iterinf.training.fit`.

    Args:
      predict: (params, frozen, images) -> scores, the larger the likelier.
      measure_loss: (scores, labels) -> summed loss.
      split: whole frames; read once, kept on the device.
      frozen: handed to `predict`.
      num_classes: K.
      batch_size: frames a call.

    Returns:
      params -> METRICS by name, over the whole split.
    """
    images, labels = pad_split(*split.stack(), batch_size, void=num_classes)
    batches = [
        jax.device_put((images[i : i + batch_size], labels[i : i + batch_size]))
        for i in range(0, len(images), batch_size)
    ]

    @jax.jit
    def count(params, frozen, images, labels):
        scores = predict(params, frozen, to_unit_range(images))
        predictions = jnp.argmax(scores, axis=-1)
        confusion = confusion_matrix(labels, predictions, num_classes)
        return measure_loss(scores, labels), confusion

    def validate(params: Params) -> dict[str, float]:
        parts = [count(params, frozen, *batch) for batch in batches]
        loss, confusion = jax.tree.map(lambda *x: sum(x), *parts)
        values = (float(loss.mean), float(mean_iou(confusion)))
        return dict(zip(METRICS, values, strict=True))

    return validate


def to_unit_range(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """uint8 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def pad_split(
    images: Shaped[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, "n h w"] | UInt8[np.ndarray, "n h w"],
    batch_size: int,
    *,
    void: int,
) -> tuple[Shaped[np.ndarray, "m h w 3"], Shaped[np.ndarray, "m h w"]]:
    """Fills the last batch with the first frames, void, which no count sees."""
    missing = -len(images) % batch_size
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="wrap")
    labels = np.pad(labels, ((0, missing), (0, 0), (0, 0)), constant_values=void)
    return images, labels
