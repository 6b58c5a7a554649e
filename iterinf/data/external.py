"""The outputs of a network that ran elsewhere, read with the images of a data set.

    train/NAME.npy           class probabilities, [h w k], or
    train/NAME.npz           arrays by name: `probabilities`, [h w k], and, if there are
                             features, some of pool1..pool5, [h' w' c]
    validation/...  test/... the same

NAME is that of the image, height h and width w are those the data set gives it, after
`scale`; the k classes are in the order of its labels. pool l has a cell for every
2^l x 2^l pixels from the upper left corner on: h' = floor(h / 2^l), w' alike. float16
halves the space.
"""

from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from jaxtyping import Float

from iterinf.data.dataset import Dataset, Record, Split
from iterinf.errors import UserError
from iterinf.runtime.files import read_arrays

STRIDES = {"probabilities": 1} | {f"pool{level}": 2**level for level in range(1, 6)}
_TOLERANCE = 0.01  # of a sum of probabilities; float16 needs .003

Outputs = dict[str, Float[np.ndarray, "_ _ _"]]


def find_stride(outputs: Iterable[str]) -> int:
    """Pixels an output's cell, in height and in width, of the coarsest; 1 if none."""
    return max((STRIDES[name] for name in outputs), default=1)


def add_outputs(dataset: Dataset, folder: Path) -> Dataset:
    """Gives every record its outputs, laid out as above; read when it is asked for.

    Args:
      dataset: whose images the network ran on.
      folder: of the files.

    Raises:
      UserError: if a folder or a file is not there; from a split, if a file is broken.
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
                raise UserError(f"{paths[index]} has {found}, others have {channels}")
            channels.update(found)
            return record._replace(outputs=outputs)

        return Split(read, split.names, split.blocks, cache=False)

    return dataset._replace(
        train=wrap(dataset.train, "train"),
        validation=wrap(dataset.validation, "validation"),
        test=wrap(dataset.test, "test"),
    )


def find_file(folder: Path, name: str) -> Path:
    """The file of an image's outputs.

    Raises:
      UserError: if there is none.
    """
    for path in (folder / f"{name}.npz", folder / f"{name}.npy"):
        if path.is_file():
            return path
    raise UserError(f"{folder / name}.npz (or .npy) does not exist")


def read_outputs(path: Path) -> Outputs:
    """Reads a file, and checks the names of its arrays.

    Raises:
      UserError: if it is damaged, or its arrays are others than above.
    """
    try:
        if path.suffix == ".npz":
            outputs = read_arrays(path)
        else:
            outputs = {"probabilities": np.load(path, allow_pickle=False)}
    except (
        *(OSError, ValueError, EOFError, NotImplementedError),
        *(BadZipFile, ZlibError, TokenError, SyntaxError),
    ) as error:  # whatever NumPy makes of a damaged file
        raise UserError(f"{path} cannot be read as arrays ({error})") from error
    if "probabilities" not in outputs or not outputs.keys() <= STRIDES.keys():
        raise UserError(
            f"{path} has the arrays {', '.join(sorted(outputs)) or 'none'}; expected "
            f"probabilities, and if features then of {', '.join(list(STRIDES)[1:])}"
        )
    return outputs


def check_outputs(
    source: str, outputs: Outputs, size: tuple[int, ...], num_classes: int
) -> None:
    """Checks shapes and values.

    Args:
      source: what errors call the outputs: the path of their file.
      outputs: by name, a key of STRIDES.
      size: height and width of the image.
      num_classes: k.

    Raises:
      UserError: naming the array and what was expected.
    """
    for name, array in outputs.items():
        cells = tuple(length // STRIDES[name] for length in size)
        depth = (num_classes,) if name == "probabilities" else array.shape[-1:]
        if array.shape != cells + depth:
            raise UserError(
                f"{name} of {source} is of shape {array.shape}, expected "
                f"{cells + depth}"
            )
        if array.dtype not in (np.float16, np.float32):
            raise UserError(
                f"{name} of {source} is {array.dtype}, expected float16 or float32"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{name} of {source} has values that are not finite")
    y = outputs["probabilities"]
    sums = y.sum(axis=-1, dtype=np.float32)
    if not (y.min() >= 0 and np.abs(sums - 1).max() <= _TOLERANCE):
        raise UserError(
            f"the probabilities of {source} do not sum to one over the classes, or "
            "some are below 0: expected the softmax of the scores"
        )
