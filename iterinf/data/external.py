"""Precomputed outputs of another network, read with the images of a data set.

    train/NAME.npy           class probabilities, [h w k], or
    train/NAME.npz           arrays by name: `probabilities`, [h w k], and optionally
                             features among pool1..pool5, [h' w' c]
    validation/...  test/... the same

NAME is the name of the image; h and w are its height and width after `scale`. The k
classes are in the order of the labels. pool l has one cell per 2^l x 2^l pixels from
the upper left corner: h' = floor(h / 2^l), and w' likewise. Arrays are float16 or
float32.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from iterinf.data.dataset import Dataset, Record, Split
from iterinf.errors import UserError
from iterinf.runtime.files import read_arrays

STRIDES = {"probabilities": 1} | {f"pool{level}": 2**level for level in range(1, 6)}
_TOLERANCE = 0.01  # for sums of probabilities; float16 needs .003

Outputs = dict[str, Float[np.ndarray, "_ _ _"]]


def find_stride(outputs: Iterable[str]) -> int:
    """Returns the stride of the coarsest output in pixels; 1 if there are none."""
    return max((STRIDES[name] for name in outputs), default=1)


def add_outputs(dataset: Dataset, folder: Path) -> Dataset:
    """Adds precomputed outputs to every record; files are read lazily.

    Raises:
      UserError: If a file is missing; when a record is read, if its file is invalid.
    """
    channels: dict[str, int] = {}

    def wrap(split: Split, name: str) -> Split:
        paths = [find_file(folder / name, stem) for stem in split.names]

        def read(index: int) -> Record:
            record = split[index]
            outputs = read_outputs(paths[index])
            size = record.label.shape
            check_outputs(str(paths[index]), outputs, size, dataset.num_classes)
            found = {key: array.shape[2] for key, array in outputs.items()}
            if found != (channels or found):
                raise UserError(
                    f"{paths[index]} has channels {found}, but others have {channels}"
                )
            channels.update(found)
            return record._replace(outputs=outputs)

        return Split(read, split.names, split.blocks, cache=False)

    splits = [wrap(split, name) for name, split in dataset.splits.items()]
    return Dataset(dataset.name, dataset.classes, dataset.colors, *splits)


def find_file(folder: Path, name: str) -> Path:
    """Returns the path of an image's outputs.

    Raises:
      UserError: If there is no such file.
    """
    for path in (folder / f"{name}.npz", folder / f"{name}.npy"):
        if path.is_file():
            return path
    raise UserError(f"{folder / name}.npz (or .npy) does not exist")


def read_outputs(path: Path) -> Outputs:
    """Reads a file of outputs and checks the names of its arrays.

    Raises:
      UserError: If the file is damaged, or has other arrays than listed above.
    """
    if path.suffix == ".npz":
        outputs = read_arrays(path)
    else:
        try:
            outputs = {"probabilities": np.load(path, allow_pickle=False)}
        except Exception as error:  # of many kinds, depending on the damage
            raise UserError(
                f"cannot read {path} as an array: it is damaged or holds other objects"
            ) from error
    if "probabilities" not in outputs or not outputs.keys() <= STRIDES.keys():
        raise UserError(
            f"{path} has arrays {', '.join(sorted(outputs)) or '(none)'}, expected "
            f"probabilities and optionally {', '.join(list(STRIDES)[1:])}"
        )
    return outputs


def check_outputs(
    source: str, outputs: Outputs, size: tuple[int, ...], num_classes: int
) -> None:
    """Checks the shapes and values of outputs for an image of this height and width.

    Raises:
      UserError: If an array is invalid; names it and the source.
    """
    for name, array in outputs.items():
        cells = tuple(length // STRIDES[name] for length in size)
        depth = (num_classes,) if name == "probabilities" else array.shape[-1:]
        if array.shape != cells + depth:
            raise UserError(
                f"{name} of {source} has shape {array.shape}, expected {cells + depth}"
            )
        if array.dtype not in (np.float16, np.float32):
            raise UserError(
                f"{name} of {source} has dtype {array.dtype}, expected float16 or "
                "float32"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{name} of {source} has non-finite values")
    y = outputs["probabilities"]
    sums = y.sum(axis=-1, dtype=np.float32)
    if not (y.min() >= 0 and np.abs(sums - 1).max() <= _TOLERANCE):
        raise UserError(
            f"probabilities of {source} are negative or do not sum to 1 over the "
            "classes, expected a softmax"
        )
