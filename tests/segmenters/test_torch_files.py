"""PyTorch's files, built here byte by byte and, where it is installed, by PyTorch."""

import collections
import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from iterinf.errors import UserError
from iterinf.segmenters.torch_files import read_torch_file

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<i8": "LongStorage"}
DRAW = np.random.default_rng(0)
ARRAYS = {
    "a.weight": DRAW.normal(size=(3, 4)).astype(np.float32),
    "a.bias": DRAW.normal(size=5).astype(np.float16),
    "steps": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


class Storage:
    """What PyTorch's pickles refer to by name."""

    def __init__(self, key, array):
        self.key, self.array = str(key), array


class Pickler(pickle.Pickler):
    """Writes tensors as torch.save does: a view of a storage that is kept apart."""

    def __init__(self, file, torch, *, legacy):
        super().__init__(file, protocol=2)
        self.torch, self.legacy = torch, legacy

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        kind = getattr(self.torch, KINDS[value.array.dtype.str])
        pid = ("storage", kind, value.key, "cpu", value.array.size)
        return (*pid, None) if self.legacy else pid


@pytest.fixture
def torch(monkeypatch):
    """A module of that name, with as much in it as a pickle must find."""
    module, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in KINDS.values():
        setattr(module, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    inner._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)
    return module


class View:
    """Pickled as a tensor."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = (storage, offset, shape, strides, False, {})

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def make_views(arrays):
    """A tensor an array, each in a storage of its own."""
    storages = [Storage(key, array) for key, array in enumerate(arrays.values())]
    views = collections.OrderedDict()
    for name, storage in zip(arrays, storages, strict=True):
        shape, item = storage.array.shape, storage.array.itemsize
        strides = tuple(stride // item for stride in storage.array.strides)
        views[name] = View(storage, 0, shape, strides)
    return views, storages


def write_zip(path, torch, content, storages):
    pickled = io.BytesIO()
    Pickler(pickled, torch, legacy=False).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())


def write_legacy(path, torch, content, storages):
    with path.open("wb") as file:
        for value in (MAGIC, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        Pickler(file, torch, legacy=True).dump(content)
        pickle.dump([storage.key for storage in storages], file, protocol=2)
        for storage in storages:
            file.write(storage.array.size.to_bytes(8, "little"))
            file.write(storage.array.tobytes())


WRITERS = [write_zip, write_legacy]


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_arrays_come_back(tmp_path, torch, write, wrap):
    views, storages = make_views(ARRAYS)
    content = {wrap: views, "epoch": 3} if wrap else views
    write(tmp_path / "x.pth", torch, content, storages)
    assert_equal(read_torch_file(tmp_path / "x.pth"), ARRAYS)


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_are_views_of_a_storage(tmp_path, torch, write):
    array = np.arange(24, dtype=np.float32)
    storage = Storage(0, array)
    views = {
        "part": View(storage, 4, (2, 3), (6, 1)),
        "transposed": View(storage, 0, (4, 6), (1, 4)),
        "repeated": View(storage, 5, (3,), (0,)),
    }
    write(tmp_path / "x.pth", torch, views, [storage])
    expected = {
        "part": array[4:16].reshape(2, 6)[:, :3],
        "transposed": array.reshape(6, 4).T,
        "repeated": np.full(3, 5, np.float32),
    }
    assert_equal(read_torch_file(tmp_path / "x.pth"), expected)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("offset", "strides"), [(4, (3, 1)), (0, (9, 1)), (8, (-1, 1))]
)
def test_a_view_outside_its_storage_is_refused(tmp_path, torch, write, offset, strides):
    storage = Storage(0, np.arange(9, dtype=np.float32))
    view = View(storage, offset, (2, 3), strides)
    write(tmp_path / "x.pth", torch, {"x": view}, [storage])
    with pytest.raises(UserError, match="lies outside its storage"):
        read_torch_file(tmp_path / "x.pth")


class Code:
    """Pickled as a call."""

    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize("write", WRITERS)
def test_code_is_refused_by_its_name(tmp_path, torch, write):
    views, storages = make_views(ARRAYS)
    write(tmp_path / "x.pth", torch, {**views, "code": Code()}, storages)
    with pytest.raises(
        UserError, match=r"it holds (posix|nt)\.system, not only arrays"
    ):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_cut_off_is_refused(tmp_path, torch, write):
    views, storages = make_views(ARRAYS)
    path = tmp_path / "x.pth"
    write(path, torch, views, storages)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{path} is no file of PyTorch arrays: "):
        read_torch_file(path)


@pytest.mark.parametrize("content", [b"", b"text, not a pickle", pickle.dumps(5)])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no file of PyTorch arrays: "):
        read_torch_file(path)
    with pytest.raises(UserError, match="cannot read .*no.pth: No such file"):
        read_torch_file(tmp_path / "no.pth")


@pytest.mark.parametrize("new", [True, False])
def test_files_by_pytorch_itself(tmp_path, new):
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: only files built here are read"
    )
    layer = torch.nn.Conv2d(3, 4, 3)
    state = layer.state_dict() | {
        "half": torch.randn(7).half()[2:],
        "n": torch.tensor(3),
    }
    state["parameter"] = torch.nn.Parameter(torch.randn(2, 5).T)
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    expected = {name: tensor.detach().numpy() for name, tensor in state.items()}
    assert_equal(read_torch_file(tmp_path / "x.pth"), expected)
