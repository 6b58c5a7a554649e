"""Statistics of a data set: image sizes and class frequencies."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from iterinf.data.dataset import Dataset, Record, Split, check_size
from iterinf.errors import UserError
from iterinf.runtime.bars import create_bar

RARE_SHARE = 0.001  # a class below this share of the labelled pixels is rare
_MAX_PROBLEMS = 20  # listed in one error


class SplitSummary(NamedTuple):
    """Statistics of the n images of a split."""

    sizes: Counter[tuple[int, int]]  # number of images per (height, width)
    pixels: Int[np.ndarray, "n c"]  # pixels per image and class; the last is void

    @property
    def shares(self) -> Float[np.ndarray, " k"]:
        """The share of the labelled pixels per class; zeros if all pixels are void."""
        labelled = self.pixels[:, :-1].sum(axis=0)
        return labelled / max(labelled.sum(), 1)

    @property
    def void_share(self) -> float:
        """The share of all pixels that are void."""
        return float(self.pixels[:, -1].sum() / self.pixels.sum())

    @property
    def num_images_with(self) -> Int[np.ndarray, " c"]:
        """The number of images that contain each class; the last is void."""
        return (self.pixels > 0).sum(axis=0)


def check_dataset(
    dataset: Dataset, *, show_progress: bool = False
) -> dict[str, SplitSummary]:
    """Reads every record once, and returns the statistics by split.

    Validation and test images must each have one size, since they are batched whole;
    training images are cropped.

    Raises:
      UserError: If records cannot be used; lists the first 20 problems.
    """
    problems: list[str] = []
    splits = dataset.splits
    summaries = {}
    title, total = f"checking {dataset.name}", sum(map(len, splits.values()))
    with create_bar(title, total, "image", show=show_progress, delay=2.0) as bar:
        for name, split in splits.items():
            records = _read_records(split, bar, problems, one_size=name != "train")
            summaries[name] = count_records(records, dataset.num_classes)
    if problems:
        count = f"{len(problems)} record{'s' if len(problems) > 1 else ''}"
        shown = "; ".join(problems[:_MAX_PROBLEMS])
        more = "; ..." if len(problems) > _MAX_PROBLEMS else ""
        raise UserError(f"{count} of {dataset.name} cannot be used: {shown}{more}")
    return summaries


def _read_records(
    split: Split, bar: tqdm, problems: list[str], *, one_size: bool
) -> Iterator[Record]:
    """Yields the valid records, and appends the problems of the others to the list."""
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


def count_records(records: Iterable[Record], num_classes: int) -> SplitSummary:
    """Counts images per size and pixels per class; labels >= `num_classes` are void."""
    sizes: Counter[tuple[int, int]] = Counter()
    pixels = []
    for record in records:
        height, width = record.label.shape
        sizes[height, width] += 1
        label = np.minimum(record.label.ravel(), num_classes)
        pixels.append(np.bincount(label, minlength=num_classes + 1))
    return SplitSummary(sizes, np.array(pixels, int).reshape(-1, num_classes + 1))


def list_warnings(
    summaries: Mapping[str, SplitSummary], classes: Sequence[str]
) -> list[str]:
    """Lists warnings about data that is valid but unusual, from summaries by split."""
    warnings = []
    for split, counted in summaries.items():
        shares = dict(zip(classes, counted.shares, strict=True))
        absent = [name for name, share in shares.items() if share == 0]
        rare = [name for name, share in shares.items() if 0 < share < RARE_SHARE]
        if absent:
            warnings.append(f"{split} has no pixels of {_list_names(absent)}.")
        if rare:
            warnings.append(
                f"{_list_names(rare)}: less than {RARE_SHARE:.1%} of the labelled "
                f"pixels in {split}."
            )
        empty = int((counted.pixels[:, :-1].sum(axis=1) == 0).sum())
        if empty:
            warnings.append(f"Images in {split} that are entirely void: {empty}.")
        if len(counted.sizes) > 1:
            warnings.append(
                f"The images in {split} have {len(counted.sizes)} different sizes: "
                "train on crops that fit into the smallest, not on whole images."
            )
    return warnings


def _list_names(names: Sequence[str]) -> str:
    """Joins the first names and the number of the others."""
    shown = 12
    more = f" and {len(names) - shown} others" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
