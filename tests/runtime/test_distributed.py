"""What processes agree on, and how they end."""

import os

import jax
import pytest

from iterinf.errors import UserError
from iterinf.runtime import distributed as processes
from iterinf.runtime.files import has_file


class Exited(Exception):
    """In place of `os._exit`."""


@pytest.fixture
def one_of_several(monkeypatch):
    """Makes this process seem to be one of several."""

    def leave(status):
        raise Exited(status)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)


def fail(error):
    with processes.end_on_errors():
        raise error


def test_user_errors_are_one_line():
    with pytest.raises(SystemExit, match="^iterinf: no such file$"):
        fail(UserError("no such file"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 B"),
    ],
)
def test_memory_that_is_used_up_is_told_as_such(error):
    with pytest.raises(SystemExit, match="out of memory: .*batch_size"):
        fail(error)


def test_what_nobody_expects_is_left_as_it_is():
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (UserError("no such file"), "iterinf: no such file", "no such file\n"),
        (
            jax.errors.JaxRuntimeError("timed out\nat ..."),
            "iterinf: lost a peer process",
            "(timed out)\n",
        ),
        (ZeroDivisionError("by 0"), "Traceback", "ZeroDivisionError: by 0\n\n"),
    ],
)
def test_one_of_several_ends_without_waiting(
    one_of_several, capsys, error, first, last
):
    with pytest.raises(Exited, match="1"):
        fail(error)
    said = capsys.readouterr().err
    assert said.startswith(first)
    assert said.endswith(last)


def test_the_first_looks_for_files_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    assert not has_file(path)
    path.touch()
    assert has_file(path)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(type(path), "exists", fail)
    assert not has_file(path)  # nobody said that it is there
