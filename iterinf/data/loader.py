"""Endless training batches whose content depends on seed and position only."""

import dataclasses
import logging
import math
from collections.abc import Sequence

import numpy as np

from iterinf.data.augment import crop_randomly, flip_randomly, jitter_color
from iterinf.data.dataset import Record, Split, stack_records
from iterinf.errors import UserError
from iterinf.types import Batch

# Beside an older jaxlib it warns, at once, of what profiling its processes would need.
logging.disable(logging.WARNING)
import grain  # noqa: E402

logging.disable(logging.NOTSET)

_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
    """Changes a record; grain seeds `rng` by the seed and the record's position."""

    crop_size: tuple[int, int] | None
    flip_probability: float
    jitter: float

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """Crops, flips and jitters, in this order: jitter moves no crop."""
        if self.crop_size is not None:
            element = crop_randomly(element, rng, self.crop_size)
        element = flip_randomly(element, rng, self.flip_probability)
        if self.jitter:
            image = jitter_color(element.image, rng, self.jitter)
            element = element._replace(image=image)
        return element


def make_train_batches(
    split: Split,
    *,
    batch_size: int,
    crop_size: tuple[int, int] | None,
    flip_probability: float,
    jitter: float = 0.0,
    seed: int,
    num_threads: int = 1,
    first_batch: int = 0,
    process: int = 0,
    num_processes: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Iterates without end over shuffled, augmented batches.

    Every record comes once an epoch, and a batch may span two epochs, so a split
    smaller than a batch fills it by repeating. What batch n holds depends on the
    seed and n: neither on the number of threads nor on where the iterator started.

    Args:
      split: where the records come from.
      batch_size: b, records a batch.
      crop_size: (height, width) of the windows; None takes whole images.
      flip_probability: of mirroring left to right.
      jitter: strength of `jitter_color`; 0 is off.
      seed: of shuffling and augmentation, in [0, 2^32).
      num_threads: that prepare batches ahead; 0 prepares each when asked for it.
      first_batch: position to start from, to go on after an interruption.
      process: which of `num_processes` equal, successive parts of every batch to make.
      num_processes: that share a batch.

    Returns:
      An iterator of NumPy batches, of b / num_processes records: images float32 in
      [0, 1], labels int32. Its `close()` ends the threads; use `contextlib.closing` or
      call it.

    Raises:
      UserError: at once if the split is empty or an argument is out of range; from
        the iterator if a crop is larger than its image, images of one batch differ
        in size, or a file is broken.
    """
    if not len(split):
        raise UserError("the training split is empty, expected at least one record")
    for name, value, low, high in (
        ("batch_size", batch_size, 1, math.inf),
        ("flip_probability", flip_probability, 0, 1),
        ("jitter", jitter, 0, math.inf),
        ("seed", seed, 0, 2**32 - 1),
        ("num_threads", num_threads, 0, math.inf),
        ("first_batch", first_batch, 0, math.inf),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} is {value}, expected {low} to {high}")
    if batch_size % num_processes:
        raise UserError(
            f"batch_size is {batch_size}, expected a multiple of the {num_processes} "
            "processes that share a batch"
        )
    batches = (
        grain.MapDataset.source(split)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_Augment(crop_size, flip_probability, jitter))
        .batch(batch_size // num_processes, drop_remainder=True, batch_fn=_make_batch)
    )[process::num_processes]
    iterator = iter(
        batches.to_iter_dataset(grain.ReadOptions(num_threads, _BATCHES_AHEAD))
    )
    grain.experimental.set_next_index(iterator, first_batch)
    return iterator


def _make_batch(records: Sequence[Record]) -> Batch:
    """Stacks records to a batch of floating point images."""
    image, label, outputs = stack_records(records)
    return Batch(image.astype(np.float32) / 255, label.astype(np.int32), outputs)
