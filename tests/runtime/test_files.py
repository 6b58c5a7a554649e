"""Result files are there whole or as before; a workdir has one process."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from iterinf.errors import UserError
from iterinf.runtime.files import (
    append_line,
    create_folder,
    lock_folder,
    read_arrays,
    read_lines,
    write_arrays,
    write_atomically,
    write_in_parts,
    write_json,
)

ROOT = pathlib.Path(__file__).parents[2]


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_whole_files_and_leaves_nothing_else(tmp_path):
    folder = tmp_path / "a" / "b"
    write_atomically({folder / "x": b"one", folder / "y": b"two"})
    write_atomically({folder / "x": b"three"})
    assert list_names(folder) == ["x", "y"]
    assert (folder / "x").read_bytes() == b"three"
    assert (folder / "y").read_bytes() == b"two"


def test_lines_are_appended_and_a_torn_one_is_not_read(tmp_path):
    path = tmp_path / "lines"
    assert read_lines(path) == []
    append_line(path, "one")
    append_line(path, "two")
    with path.open("a") as file:
        file.write("thr")
    assert read_lines(path) == ["one", "two"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/no/lines: No such"):
        append_line(tmp_path / "no" / "lines", "one")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/a: Not a"):
        create_folder(tmp_path / "file" / "a")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_every_file_as_it_was(tmp_path, monkeypatch, function):
    paths = [tmp_path / "x", tmp_path / "y"]
    write_atomically({path: b"old" for path in paths})

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(UserError) as caught:
            write_atomically({path: b"new" for path in paths})
    message = f"cannot write {paths[0]}: No space left on device"
    assert str(caught.value).startswith(message)
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    assert list_names(tmp_path) == ["x", "y"]


def test_the_last_file_that_fails_leaves_the_first_as_it_was(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    write_atomically({tmp_path / "x": b"old"})
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/y: "):
        write_atomically({tmp_path / "x": b"new", tmp_path / "file" / "y": b"new"})
    assert (tmp_path / "x").read_bytes() == b"old"
    assert list_names(tmp_path) == ["file", "x"]


def test_files_come_part_by_part_or_not_at_all(tmp_path):
    paths = [tmp_path / "a" / name for name in "xy"]

    def list_parts(last):
        yield {paths[0]: b"1", paths[1]: b"2"}
        assert not paths[0].exists()
        if last:
            raise UserError("the second part cannot be computed")
        yield {paths[1]: b"3"}

    with pytest.raises(UserError, match="the second part"):
        write_in_parts(paths, list_parts(last=True))
    assert list_names(tmp_path / "a") == []
    write_in_parts(paths, list_parts(last=False))
    assert [path.read_bytes() for path in paths] == [b"1", b"23"]
    assert list_names(tmp_path / "a") == ["x", "y"]


def test_killed_before_the_move_the_old_file_is_left(tmp_path):
    write_atomically({tmp_path / "x": b"old"})
    script = (
        "import os, pathlib, signal, sys\n"
        "from iterinf.runtime.files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically({pathlib.Path(sys.argv[1]): b'new'})\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert (tmp_path / "x").read_bytes() == b"old"
    write_atomically({tmp_path / "x": b"new"})
    assert (tmp_path / "x").read_bytes() == b"new"
    assert list_names(tmp_path) == ["x"]


def test_json_and_arrays_come_back(tmp_path):
    write_json(tmp_path / "a.json", {"x": 0.1, "y": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1, "y": None}
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.float32([0.1, np.nan])}
    write_arrays(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_arrays_are_read_without_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="cannot read .*a.npz as arrays"):
        read_arrays(tmp_path / "a.npz")


def test_a_folder_has_one_holder_at_a_time(tmp_path):
    folder = tmp_path / "a" / "b"
    with lock_folder(folder), pytest.raises(UserError, match=f"{folder} is in use"):
        with lock_folder(folder):
            pytest.fail("two hold the folder")
    with lock_folder(folder):
        pass
