"""Any directory of images and label maps.

    classes.json                         what the ids of the label maps mean
    train/images/NAME.png (or .jpg)      RGB or gray images
    train/labels/NAME.png                label maps: one channel of class ids
    validation/...  test/...             the same

classes.json is {"classes": [{"name": "road", "color": [128, 64, 128]}, ...],
"void_id": 255, "void_color": [0, 0, 0]}: the id of a class is its place in the list,
from 0, or what stands as its "id", e.g. {"name": "wall", "color": [9, 9, 9], "id": 1}
where 0 is void; pixels of `void_id` are never counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import Dataset, Record, Split, format_size
from iterinf.data.image_io import read_image, read_label
from iterinf.errors import UserError

MAX_CLASSES = 254  # places and void are uint8
MAX_ID = 65535  # label maps have 16 bits at most
_KEYS = {"classes", "void_id", "void_color"}


class _Legend(NamedTuple):
    """What classes.json says."""

    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k+1 3"]  # the last is void
    ids: tuple[int, ...]  # k of them
    void_id: int


def load_folder(path: str, *, scale: int = 1, cache: bool = True) -> Dataset:
    """Opens a folder laid out as above; images are read when they are asked for.

    Args:
      path: the folder.
      scale: integer factor by which images are made smaller.
      cache: keep decoded images in memory.

    Raises:
      UserError: if classes.json is missing or wrong, a split is empty, or an image
        has no label map or the reverse.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(
            f"data folder {root} does not exist, expected classes.json, train/, "
            "validation/ and test/ in it"
        )
    legend = _read_legend(root / "classes.json")
    train, validation, test = (
        _open_split(root / split, legend, scale, cache)
        for split in ("train", "validation", "test")
    )
    return Dataset(root.name, legend.names, legend.colors, train, validation, test)


def _read_legend(path: Path) -> _Legend:
    """Reads and checks classes.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist, expected the names and colors of the classes"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or set(content) != _KEYS:
        raise UserError(
            f"{path} must be an object with the keys {', '.join(sorted(_KEYS))}"
        )
    classes, void_id = content["classes"], content["void_id"]
    if not isinstance(classes, list) or not 1 <= len(classes) <= MAX_CLASSES:
        raise UserError(
            f"'classes' of {path} must be a list of 1 to {MAX_CLASSES} classes"
        )
    entries = [_check_class(path, index, entry) for index, entry in enumerate(classes)]
    names, colors, ids = zip(*entries, strict=True)
    for what, values in (("name", names), ("id", ids)):
        if len(set(values)) != len(values):
            raise UserError(
                f"{path} has two classes of one {what}, expected different ones"
            )
    if not _is_id(void_id) or void_id in ids:
        raise UserError(
            f"'void_id' of {path} is {void_id!r}, expected a whole number that is no "
            f"class id ({_list_ids(ids)} are)"
        )
    void_color = _check_color(path, "void", content["void_color"])
    return _Legend(names, np.array([*colors, void_color], np.uint8), ids, void_id)


def _check_class(path: Path, index: int, entry: Any) -> tuple[str, list[int], int]:
    """Returns name, color and id of a class."""
    if not isinstance(entry, dict) or set(entry) - {"id"} != {"name", "color"}:
        raise UserError(f"class {index} of {path} must have a name and a color")
    name, class_id = str(entry["name"]), entry.get("id", index)
    if not _is_id(class_id):
        raise UserError(
            f"the id of {name} in {path} is {class_id!r}, expected a whole number in "
            f"0..{MAX_ID}"
        )
    return name, _check_color(path, name, entry["color"]), class_id


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _list_ids(ids: Sequence[int]) -> str:
    """As a range, if they are one."""
    low, high = min(ids), max(ids)
    if high - low == len(ids) - 1:
        return f"{low}..{high}"
    return ", ".join(map(str, sorted(ids)))


def _check_color(path: Path, name: str, color: object) -> list[int]:
    """Returns the color if it is three whole numbers in 0..255."""
    if (
        not isinstance(color, list)
        or len(color) != 3
        or not all(isinstance(value, int) and 0 <= value <= 255 for value in color)
    ):
        raise UserError(
            f"the color of {name} in {path} is {color!r}, expected three whole numbers "
            "in 0..255"
        )
    return color


def _open_split(root: Path, legend: _Legend, scale: int, cache: bool) -> Split:
    """Pairs the files of a split by name; every image is a block of its own."""
    images = _list_files(root / "images", (".png", ".jpg"))
    labels = _list_files(root / "labels", (".png",))
    if not images:
        raise UserError(f"{root / 'images'} has no .png or .jpg image")
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise UserError(
                f"{images[name]} has no label map, expected "
                f"{root / 'labels' / name}.png (JPEG would change the ids)"
            )
        raise UserError(
            f"{labels[name]} has no image, expected "
            f"{root / 'images' / name}.png or .jpg"
        )
    names = sorted(images)
    return Split(
        lambda index: _read_record(images[names[index]], labels[names[index]], legend),
        names,
        range(len(names)),
        scale=scale,
        cache=cache,
    )


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder that end so, by their name without the ending."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist, expected a folder of files")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(
                f"{files[path.stem]} and {path} have one name, expected two"
            )
        files[path.stem] = path
    return files


def _read_record(image_path: Path, label_path: Path, legend: _Legend) -> Record:
    """Reads one image with its label map; void becomes k."""
    image, ids = read_image(image_path), read_label(label_path)
    if image.shape[:2] != ids.shape:
        raise UserError(
            f"{image_path} is {format_size(image)} but {label_path} is "
            f"{format_size(ids)}, expected one size"
        )
    unknown = ids[~np.isin(ids, (*legend.ids, legend.void_id))]
    if unknown.size:
        raise UserError(
            f"{label_path} has label {unknown[0]}, expected {_list_ids(legend.ids)} or "
            f"{legend.void_id} (void)"
        )
    places = np.zeros(MAX_ID + 1, np.uint8)
    places[[*legend.ids, legend.void_id]] = np.arange(len(legend.ids) + 1)
    return Record(image, places[ids], image_path.stem)
