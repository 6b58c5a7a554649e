"""Data sets from a folder of images and label maps.

    classes.json                         names, colours and ids of the classes
    train/images/NAME.png (or .jpg)      RGB or grey images
    train/labels/NAME.png                label maps with one channel of class ids
    validation/...  test/...             the same

classes.json is {"classes": [{"name": "road", "color": [128, 64, 128]}, ...],
"void_id": 255, "void_color": [0, 0, 0]}. The id of a class is its position in the list,
from 0, unless it has an "id", e.g. {"name": "wall", "color": [9, 9, 9], "id": 1}.
Pixels with `void_id` are never counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import SPLITS, Dataset, Record, Split, format_size
from iterinf.data.image_io import read_image, read_label
from iterinf.errors import UserError

MAX_CLASSES = 254  # class indices and void are uint8
MAX_ID = 65535  # label maps have at most 16 bits
_KEYS = {"classes", "void_id", "void_color"}


class _ClassInfo(NamedTuple):
    """The content of classes.json."""

    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k+1 3"]  # the last is void
    ids: tuple[int, ...]  # k ids
    void_id: int


def load_folder(path: str, *, scale: int = 1, cache: bool = True) -> Dataset:
    """Opens a folder laid out as above; images are read lazily.

    Args:
      path: The folder.
      scale: The integer factor by which images are downsampled.
      cache: Whether to keep decoded images in memory.

    Raises:
      UserError: If classes.json is missing or invalid, a split is empty, or an image
        or label map has no counterpart.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(
            f"data folder {root} does not exist, expected a folder with classes.json, "
            "train/, validation/ and test/"
        )
    info = _read_class_info(root / "classes.json")
    splits = [_open_split(root / split, info, scale, cache) for split in SPLITS]
    return Dataset(root.name, info.names, info.colors, *splits)


def _read_class_info(path: Path) -> _ClassInfo:
    """Reads and checks classes.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} (names and colours of the classes) cannot be read as JSON: {error}"
        ) from error
    if not isinstance(content, dict) or set(content) != _KEYS:
        raise UserError(
            f"{path} is not an object with exactly the keys {', '.join(sorted(_KEYS))}"
        )
    classes, void_id = content["classes"], content["void_id"]
    if not isinstance(classes, list) or not 1 <= len(classes) <= MAX_CLASSES:
        raise UserError(
            f"'classes' in {path} is not a list of 1 to {MAX_CLASSES} classes"
        )
    entries = [_check_class(path, index, entry) for index, entry in enumerate(classes)]
    names, colors, ids = zip(*entries, strict=True)
    for what, values in (("name", names), ("id", ids)):
        if len(set(values)) != len(values):
            raise UserError(
                f"{path} has two classes with the same {what}, expected unique {what}s"
            )
    if not _is_id(void_id) or void_id in ids:
        raise UserError(
            f"'void_id' in {path} is {void_id!r}, expected an integer other than the "
            f"class ids ({_list_ids(ids)})"
        )
    void_color = _check_color(path, "void", content["void_color"])
    return _ClassInfo(names, np.array([*colors, void_color], np.uint8), ids, void_id)


def _check_class(path: Path, index: int, entry: Any) -> tuple[str, list[int], int]:
    """Returns name, color and id of a class."""
    if not isinstance(entry, dict) or set(entry) - {"id"} != {"name", "color"}:
        raise UserError(
            f"class {index} in {path} does not have a name and a color (and optionally "
            "an id)"
        )
    name, class_id = str(entry["name"]), entry.get("id", index)
    if not _is_id(class_id):
        raise UserError(
            f"the id of {name} in {path} is {class_id!r}, expected an integer in "
            f"0..{MAX_ID}"
        )
    return name, _check_color(path, name, entry["color"]), class_id


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _list_ids(ids: Sequence[int]) -> str:
    """Formats ids, as a range if possible."""
    low, high = min(ids), max(ids)
    if high - low == len(ids) - 1:
        return f"{low}..{high}"
    return ", ".join(map(str, sorted(ids)))


def _check_color(path: Path, name: str, color: object) -> list[int]:
    """Returns the color if it is three integers in 0..255."""
    if (
        not isinstance(color, list)
        or len(color) != 3
        or not all(isinstance(value, int) and 0 <= value <= 255 for value in color)
    ):
        raise UserError(
            f"the color of {name} in {path} is {color!r}, expected three integers in "
            "0..255"
        )
    return color


def _open_split(root: Path, info: _ClassInfo, scale: int, cache: bool) -> Split:
    """Pairs the files of a split by name; every image is its own bootstrap block."""
    images = _list_files(root / "images", (".png", ".jpg"))
    labels = _list_files(root / "labels", (".png",))
    if not images:
        raise UserError(f"{root / 'images'} has no .png or .jpg images")
    names, unpaired = sorted(images), sorted(images.keys() ^ labels.keys())
    if unpaired:
        name = unpaired[0]
        raise UserError(
            f"{images.get(name) or labels[name]} has no counterpart, expected "
            f"{root / 'images' / name}.png (or .jpg) and {root / 'labels' / name}.png "
            "(JPEG would change the class ids)"
        )

    def read(index: int) -> Record:
        name = names[index]
        return read_record(images[name], labels[name], info.ids, info.void_id)

    return Split(read, names, range(len(names)), scale=scale, cache=cache)


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Returns the files with the given suffixes by stem."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(
                f"{files[path.stem]} and {path} differ only in extension; rename one"
            )
        files[path.stem] = path
    return files


def read_record(
    image_path: Path, label_path: Path, ids: Sequence[int], void_id: int
) -> Record:
    """Reads an image with its label map, whose ids become 0..k-1, and void k.

    Raises:
      UserError: If a file is invalid, their sizes differ, or a label is unknown.
    """
    image, label = read_image(image_path), read_label(label_path)
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{image_path} is {format_size(image)} but {label_path} is "
            f"{format_size(label)}, expected equal sizes"
        )
    known = [*ids, void_id]
    unknown = label[~np.isin(label, known)]
    if unknown.size:
        raise UserError(
            f"{label_path} has label {unknown[0]}, expected {_list_ids(ids)} or "
            f"{void_id} (void)"
        )
    indices = np.zeros(MAX_ID + 1, np.uint8)
    indices[known] = np.arange(len(known))
    return Record(image, indices[label], image_path.stem)
