"""Any directory of images and label maps.

    classes.json                         what the ids of the label maps mean
    train/images/NAME.png (or .jpg)      RGB or gray images
    train/labels/NAME.png                label maps: one channel of class ids
    validation/...  test/...             the same

classes.json is {"classes": [{"name": "road", "color": [128, 64, 128]}, ...],
"void_id": 255, "void_color": [0, 0, 0]}: the id of a class is its place in the list,
from 0; pixels of `void_id` are never counted.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import Dataset, Record, Split, format_size
from iterinf.data.images import read_image, read_label
from iterinf.errors import UserError

MAX_CLASSES = 254  # ids and void are uint8
_KEYS = {"classes", "void_id", "void_color"}


class _Legend(NamedTuple):
    """What classes.json says."""

    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "k+1 3"]  # the last is void
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
    names, colors = [], []
    for index, entry in enumerate(classes):
        if not isinstance(entry, dict) or set(entry) != {"name", "color"}:
            raise UserError(f"class {index} of {path} must have a name and a color")
        names.append(str(entry["name"]))
        colors.append(_check_color(path, names[-1], entry["color"]))
    if len(set(names)) != len(names):
        raise UserError(f"{path} has two classes of one name, expected different ones")
    if not isinstance(void_id, int) or not len(names) <= void_id:
        raise UserError(
            f"'void_id' of {path} is {void_id!r}, expected a whole number that is no "
            f"class id (0..{len(names) - 1} are)"
        )
    colors.append(_check_color(path, "void", content["void_color"]))
    return _Legend(tuple(names), np.array(colors, np.uint8), void_id)


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
    num_classes = len(legend.names)
    void = ids == legend.void_id
    unknown = ids[~void & ((ids < 0) | (ids >= num_classes))]
    if unknown.size:
        raise UserError(
            f"{label_path} has label {unknown[0]}, expected 0..{num_classes - 1} or "
            f"{legend.void_id} (void)"
        )
    label = np.where(void, num_classes, ids).astype(np.uint8)
    return Record(image, label, image_path.stem)
