"""What a data set holds: sizes, and how often each class occurs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from iterinf.data.dataset import Dataset, Record, Split, check_size
from iterinf.errors import UserError
from iterinf.runtime.bars import create_bar

RARE_SHARE = 0.001  # of the labelled pixels, below which a class is called rare
_MAX_PROBLEMS = 20  # as many as one still reads


class SplitCensus(NamedTuple):
    """Counted in the n images of a split."""

    sizes: Counter[tuple[int, int]]  # images by height and width
    pixels: Int[np.ndarray, "n c"]  # of each image, by class; the last is void

    @property
    def num_labelled(self) -> int:
        """The number of pixels that are not void."""
        return int(self.pixels[:, :-1].sum())

    @property
    def shares(self) -> Float[np.ndarray, " k"]:
        """The part of the labelled pixels that each class has; zeros if all is void."""
        return self.pixels[:, :-1].sum(axis=0) / max(self.num_labelled, 1)

    @property
    def void_share(self) -> float:
        """The part of all pixels that is void."""
        return float(self.pixels[:, -1].sum() / self.pixels.sum())

    @property
    def num_images_with(self) -> Int[np.ndarray, " c"]:
        """The number of images that show each class; the last is void."""
        return (self.pixels > 0).sum(axis=0)


def check_dataset(
    dataset: Dataset, *, show_progress: bool = False
) -> dict[str, SplitCensus]:
    """Reads every record of every split, once.

    Args:
      dataset: whose validation and test images must be of one size each, since whole
        images make up a batch there; training images are cropped.
      show_progress: by a bar, if it takes longer than two seconds.

    Returns:
      What was counted, by name of the split: train, validation, test.

    Raises:
      UserError: naming all that is wrong (the first 20 of it), if anything is.
    """
    problems: list[str] = []
    splits = dataset.splits
    census = {}
    with create_bar(
        f"checking {dataset.name}",
        sum(map(len, splits.values())),
        "image",
        show=show_progress,
        delay=2.0,
    ) as bar:
        for name, split in splits.items():
            records = _read_records(split, bar, problems, one_size=name != "train")
            census[name] = count_records(records, dataset.num_classes)
    if problems:
        count = f"{len(problems)} record{'s' if len(problems) > 1 else ''}"
        shown = "; ".join(problems[:_MAX_PROBLEMS])
        more = "; ..." if len(problems) > _MAX_PROBLEMS else ""
        raise UserError(f"{count} of {dataset.name} cannot be used: {shown}{more}")
    return census


def _read_records(
    split: Split, bar: tqdm, problems: list[str], *, one_size: bool
) -> Iterator[Record]:
    """The records that can be used; of the others, problems are added to the list."""
    first = None
    for index in range(len(split)):
        bar.update()
        try:
            record = split[index]
            if one_size:
                first = first or record
                check_size(record, first)
        except UserError as error:
            problems.append(str(error))
        else:
            yield record


def count_records(records: Iterable[Record], num_classes: int) -> SplitCensus:
    """Counts images by size and pixels by class; labels from `num_classes` are void."""
    sizes: Counter[tuple[int, int]] = Counter()
    pixels = []
    for record in records:
        height, width = record.label.shape
        sizes[height, width] += 1
        label = np.minimum(record.label.ravel(), num_classes)
        pixels.append(np.bincount(label, minlength=num_classes + 1))
    return SplitCensus(sizes, np.array(pixels, int).reshape(-1, num_classes + 1))


def list_warnings(
    census: Mapping[str, SplitCensus], classes: Sequence[str]
) -> list[str]:
    """Sentences on what can be used, but should be known.

    Args:
      census: by name of the split.
      classes: k names.
    """
    warnings = []
    for split, counted in census.items():
        absent = [
            name
            for name, share in zip(classes, counted.shares, strict=True)
            if not share
        ]
        if absent:
            warnings.append(f"{split} does not show {_list_names(absent)}.")
        rare = [
            name
            for name, share in zip(classes, counted.shares, strict=True)
            if 0 < share < RARE_SHARE
        ]
        if rare:
            warnings.append(
                f"{_list_names(rare)}: less than {RARE_SHARE:.1%} of the labelled "
                f"pixels of {split}."
            )
        empty = int((counted.pixels[:, :-1].sum(axis=1) == 0).sum())
        if empty:
            warnings.append(f"{empty} of the images of {split} are void all over.")
        if len(counted.sizes) > 1:
            warnings.append(
                f"The images of {split} are of {len(counted.sizes)} sizes: train on "
                "crops that fit into the smallest, not on whole images."
            )
    return warnings


def _list_names(names: Sequence[str]) -> str:
    """The first ones, and how many follow."""
    shown = 12
    more = f" and {len(names) - shown} others" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
