"""Loss and mean IoU of a network on the validation split."""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from iterinf.data.dataset import Split
from iterinf.ops.metrics import compute_mean_iou, confusion_matrix
from iterinf.runtime.devices import collect, replicate_outputs, shard, use_all_devices
from iterinf.training.loop import Params
from iterinf.training.losses import LossSum
from iterinf.training.objectives import Predict, to_unit_range
from iterinf.types import MONITORS, Batch

Validate = Callable[[Params], dict[str, float]]


def make_validation(
    predict: Predict,
    measure_loss: Callable[[Array, Array], LossSum],
    split: Split,
    *,
    frozen: Any,
    num_classes: int,
    batch_size: int,
) -> Validate:
    """Makes the function params -> values of `MONITORS` on the whole split.

    Args:
      predict: A function (params, frozen, batch) -> logits.
      measure_loss: A function (logits, labels) -> summed loss.
      split: The images, read at the first validation and kept on the devices.
      frozen: The second argument of `predict`.
      num_classes: The number of classes.
      batch_size: The number of images per call.
    """

    @functools.cache
    def load_batches() -> list[Batch]:
        return list(shard_batches(split.stack(), batch_size, void=num_classes))

    @jax.jit
    def count(params, frozen, batch):
        batch = to_unit_range(batch)
        scores = predict(params, frozen, batch)
        predictions = jnp.argmax(scores, axis=-1)
        confusion = confusion_matrix(batch.label, predictions, num_classes)
        return replicate_outputs((measure_loss(scores, batch.label), confusion))

    def validate(params: Params) -> dict[str, float]:
        batches = load_batches()
        with use_all_devices():
            parts = collect(count(params, frozen, batch) for batch in batches)
        losses, confusions = zip(*jax.device_get(parts), strict=True)
        loss = jax.tree.map(lambda *x: sum(x), *losses)
        confusion = np.asarray(confusions, np.int64).sum(axis=0)
        values = (float(loss.mean), float(compute_mean_iou(confusion)))
        return dict(zip(MONITORS, values, strict=True))

    return validate


def shard_batches(split: Batch, batch_size: int, *, void: int) -> Iterator[Batch]:
    """Yields the batches of `batch_split`, each sharded over all devices."""
    batches = batch_split(split, batch_size, void=void)
    for i in range(len(batches.label)):
        yield shard(jax.tree.map(operator.itemgetter(i), batches))


def batch_split(
    split: Batch, batch_size: int, *, void: int, multiple: int = 1
) -> Batch:
    """Splits n images, NumPy arrays, into batches of equal size.

    Args:
      split: The whole split.
      batch_size: The batch size b.
      void: The label of the repeated images that fill the last batches.
      multiple: The divisor of the number of batches.

    Returns:
      Arrays [m, b, ...] with m >= n / b.
    """
    num_images = len(split.label)
    missing = -num_images % (batch_size * multiple)
    indices = np.arange(num_images + missing) % num_images
    whole = jax.tree.map(lambda x: x[indices], split)
    whole.label[num_images:] = void
    return jax.tree.map(lambda x: x.reshape(-1, batch_size, *x.shape[1:]), whole)
