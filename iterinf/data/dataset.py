"""Data sets: three splits of images with their label maps."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.core import FrozenDict
from jaxtyping import Float, UInt8

from iterinf.errors import UserError
from iterinf.types import Batch

SPLITS = ("train", "validation", "test")


class Record(NamedTuple):
    """One image with its label map."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    label: UInt8[np.ndarray, "h w"]  # 0..k-1; k: void
    name: str
    outputs: Mapping[str, Float[np.ndarray, "_ _ _"]] = FrozenDict()  # see external.py
    mirrored: "Record | None" = None  # left to right, if it has its own outputs


class Split:
    """A random-access sequence of records, decoded lazily.

    Safe to read from several threads: two that read the same record at once both
    decode it, with equal results. Cached arrays are read-only.
    """

    def __init__(
        self,
        read: Callable[[int], Record],
        names: Sequence[str],
        blocks: Sequence[int],
        *,
        scale: int = 1,
        cache: bool = True,
    ) -> None:
        """Creates a split without reading any record.

        Args:
          read: A function from a position to the full-size record.
          names: The names of the records.
          blocks: The bootstrap block of each record. Records of a block are resampled
            together, since neighbouring frames of a clip are correlated.
          scale: The integer factor of `shrink_record`.
          cache: Whether to keep decoded records in memory.
        """
        if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
            raise UserError(f"scale is {scale!r}, expected an integer >= 1")
        if len(names) != len(blocks):
            raise ValueError(f"{len(names)} names but {len(blocks)} blocks")
        self.names = tuple(names)
        self.blocks = tuple(int(block) for block in blocks)
        self._read = read
        self._scale = scale
        self._cache: dict[int, Record] | None = {} if cache else None

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        """Returns a record; negative positions count from the end."""
        index = range(len(self))[index]
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        record = shrink_record(self._read(index), self._scale)
        if self._cache is not None:
            record.image.setflags(write=False)
            record.label.setflags(write=False)
            self._cache[index] = record
        return record

    def __iter__(self) -> Iterator[Record]:
        """Yields the records in order."""
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Sequence[int]) -> "Split":
        """Returns the split of the records at `indices`, in that order."""
        return Split(
            lambda index: self[indices[index]],
            [self.names[index] for index in indices],
            [self.blocks[index] for index in indices],
            cache=False,  # self has one
        )

    def stack(self, indices: Sequence[int] | None = None) -> Batch:
        """Stacks the records at `indices` (default: all); see `stack_records`."""
        chosen = range(len(self)) if indices is None else indices
        return stack_records([self[index] for index in chosen])


class Dataset(NamedTuple):
    """The three splits of a data set, and its classes."""

    name: str
    classes: tuple[str, ...]  # k names
    colors: UInt8[np.ndarray, "k+1 3"]  # RGB per class; the last is void
    train: Split
    validation: Split
    test: Split

    @property
    def num_classes(self) -> int:
        """The number of classes k, without void."""
        return len(self.classes)

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {name: getattr(self, name) for name in SPLITS}


def stack_records(records: Sequence[Record]) -> Batch:
    """Stacks records of one size into a batch of NumPy arrays, images in uint8.

    Raises:
      UserError: If there are no records, or their sizes differ.
    """
    if not records:
        raise UserError("no records to stack, expected at least one")
    for record in records:
        check_size(record, records[0])
    parts: list[Any] = [(r.image, r.label, dict(r.outputs)) for r in records]
    return Batch(*jax.tree.map(lambda *arrays: np.stack(arrays), *parts))


def shrink_record(record: Record, scale: int) -> Record:
    """Downsamples a record by an integer factor; height and width are floored.

    An image pixel is the mean of a scale x scale square, with halves rounded up; a
    label is that of the pixel to the lower right of the square's centre.
    """
    if scale == 1:
        return record
    height, width = (size // scale for size in record.label.shape)
    if not height or not width:
        raise UserError(
            f"{record.name} is {format_size(record.label)}, which is too small for "
            f"scale {scale}"
        )
    image = record.image[: height * scale, : width * scale].astype(np.uint32)
    squares = image.reshape(height, scale, width, scale, 3)
    total = squares.sum(axis=(1, 3), dtype=np.uint32)  # h/scale w/scale 3
    mean = (total + scale**2 // 2) // scale**2
    label = record.label[scale // 2 :: scale, scale // 2 :: scale][:height, :width]
    return record._replace(
        image=mean.astype(np.uint8), label=np.ascontiguousarray(label)
    )


def check_size(record: Record, first: Record) -> None:
    """Raises UserError if two records differ in size."""
    if record.label.shape != first.label.shape:
        raise UserError(
            f"{first.name} is {format_size(first.label)} but {record.name} is "
            f"{format_size(record.label)}, expected equal sizes"
        )


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Describes a data set as JSON values, from the first record of each split.

    The description tells data sets apart, and holds what prediction needs: the colours,
    the image size, and the number of channels of precomputed outputs.
    """
    record = dataset.train[0]
    described: dict[str, Any] = {
        "classes": list(dataset.classes),
        "colors": dataset.colors.tolist(),
        "size": list(record.label.shape),
        "outputs": {name: a.shape[-1] for name, a in record.outputs.items()},
    }
    for name, split in dataset.splits.items():
        first = split[0]
        described[name] = {
            "records": len(split),
            "names": zlib.crc32("\n".join(split.names).encode()),
        }
        arrays = {"image": first.image, "label": first.label, **first.outputs}
        for key, array in arrays.items():
            described[name][f"first_{key}"] = zlib.crc32(array.tobytes())
    return described


def format_size(array: np.ndarray) -> str:
    """Formats the height and width of an array, e.g. 360x480."""
    return f"{array.shape[0]}x{array.shape[1]}"
