"""Endless training batches whose content depends only on the seed and position."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from iterinf.data.augment import crop_randomly, flip_randomly, jitter_color
from iterinf.data.dataset import Record, Split, stack_records
from iterinf.errors import UserError
from iterinf.types import Batch

# With an older jaxlib, importing grain logs a warning about profiling its processes.
logging.disable(logging.WARNING)
import grain  # noqa: E402

logging.disable(logging.NOTSET)

_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
    """Augments a record; grain seeds `rng` from the seed and the record's position."""

    crop_size: tuple[int, int] | None
    flip_probability: float
    jitter: float

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """Crops, flips and jitters, in this order, so that jitter moves no crop."""
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
    """Creates an endless iterator over shuffled, augmented batches.

    Every record occurs once per epoch. A batch may span two epochs, so that a split
    smaller than a batch fills it by repetition. The content of batch n depends only on
    the seed and n, not on the number of threads or the first batch.

    Args:
      split: The training split.
      batch_size: The number b of records per batch.
      crop_size: The (height, width) of crops; None for whole images.
      flip_probability: The probability of mirroring left to right.
      jitter: The strength of `jitter_color`; 0 disables it.
      seed: The seed of shuffling and augmentation, in [0, 2^32).
      num_threads: The number of prefetching threads; 0 prepares batches on demand.
      first_batch: The index of the first batch, to resume after an interruption.
      process: The index of the part of every batch to produce.
      num_processes: The number of equal, consecutive parts of every batch.

    Returns:
      An iterator over NumPy batches of b / num_processes records; images are float32 in
      [0, 1], labels int32. Its `close()` stops the threads.

    Raises:
      UserError: If the split is empty; when iterating, if a crop is larger than its
        image, images of a batch differ in size, or a file is invalid.
    """
    if not len(split):
        raise UserError("the training split is empty, expected at least one record")
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
    """Stacks records into a batch of floating-point images."""
    image, label, outputs = stack_records(records)
    return Batch(image.astype(np.float32) / 255, label.astype(np.int32), outputs)
