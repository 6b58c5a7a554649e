"""PyTorch's .pth files without PyTorch: arrays only, no code is ever run.

A checkpoint is a pickle that names storages, and the storages' bytes: in a zip archive
(since PyTorch 1.6) or one after the other in the file (before). The unpickler here
knows tensors, parameters and ordered dictionaries, and refuses everything else.
"""

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from iterinf.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a legacy file
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    """A run of numbers that tensors are views of; legacy files fill it in later."""

    dtype: np.dtype
    data: bytearray


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Copies the view out of its storage; refuses one that leaves it."""
        flat = np.frombuffer(self.storage.data, self.storage.dtype)
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        if min((self.offset, *self.strides)) < 0 or last >= len(flat):
            raise ValueError("a tensor lies outside its storage")
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, strides, writeable=False
        )
        return view.copy()


class _Unpickler(pickle.Unpickler):
    """Knows what a dictionary of tensors is made of."""

    def __init__(self, file: Any, load_storage: Callable[..., _Storage]):
        super().__init__(file)
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """Looks a name up that the pickle asks for."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Finds a storage: ("storage", dtype, key, location, number of elements...)."""
        return self._load_storage(*pid[1:])


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict saved by torch.save.

    Args:
      path: .pth or .pt, of any PyTorch version.

    Returns:
      Arrays by name. A dictionary around them ("state_dict" or "model") is opened.

    Raises:
      UserError: if it is no such file, is cut off, or holds anything but arrays.
    """
    try:
        content = path.read_bytes()
        is_zip = zipfile.is_zipfile(io.BytesIO(content))
        found = _read_zip(content) if is_zip else _read_legacy(content)
        for key in ("state_dict", "model"):
            found = found.get(key, found)
        return {
            str(name): tensor.read()
            for name, tensor in found.items()
            if isinstance(tensor, _Tensor)
        }
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        EOFError,
    ) as error:
        raise UserError(f"{path} is no file of PyTorch arrays: {error}") from error


def _read_zip(content: bytes) -> dict[str, Any]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")

    def load_storage(dtype, key, *_):
        return _Storage(dtype, bytearray(archive.read(f"{folder}data/{key}")))

    return _Unpickler(io.BytesIO(archive.read(pickled)), load_storage).load()


def _read_legacy(content: bytes) -> dict[str, Any]:
    file = io.BytesIO(content)
    storages: dict[str, _Storage] = {}

    def load_storage(dtype, key, location, size, view=None):
        if view is not None:
            raise ValueError("a storage of it is a view of another")
        return storages.setdefault(key, _Storage(dtype, bytearray()))

    def load() -> Any:
        return _Unpickler(file, load_storage).load()

    if load() != _MAGIC:
        raise ValueError("its first number is not PyTorch's")
    _, _ = load(), load()  # protocol and machine
    found = load()
    for key in load():
        storage = storages[key]
        header = file.read(8)
        size = int.from_bytes(header, "little") * storage.dtype.itemsize
        storage.data.extend(file.read(size))
        if len(header) != 8 or len(storage.data) != size:
            raise ValueError("it is cut off")
    return found
