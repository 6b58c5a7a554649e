"""Result files: there whole, or not at all.

Of several processes the first writes, and none goes on before that is done.
"""

import collections
import contextlib
import fcntl
import io
import json
import os
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from iterinf.errors import UserError
from iterinf.runtime.distributed import ask_first, is_first, wait_for_all


def write_atomically(contents: Mapping[Path, bytes]) -> None:
    """Writes files so that each is there whole or as it was before.

    All are written beside their places first and moved there when the last is on
    disk: a full disk leaves every one of them untouched.

    Raises:
      UserError: naming the file and the reason, if writing fails.
    """
    write_in_parts(contents, [contents])


def write_in_parts(
    paths: Collection[Path], parts: Iterable[Mapping[Path, bytes]]
) -> None:
    """Writes files of which memory holds a part at a time, as `write_atomically` does.

    Args:
      paths: of the files.
      parts: what comes next in each; every process goes through them.
    """
    with _write_first() as writes:
        if writes:
            _write_in_parts(paths, parts)
        else:
            collections.deque(parts, maxlen=0)


@contextlib.contextmanager
def _write_first() -> Iterator[bool]:
    """Says whether to write; no process reads before, or goes on too early after."""
    wait_for_all("before writing")
    yield is_first()
    wait_for_all("after writing")


def _write_in_parts(
    paths: Collection[Path], parts: Iterable[Mapping[Path, bytes]]
) -> None:
    temporary = {path: path.with_name(f".{path.name}.tmp") for path in paths}
    files: dict[Path, BinaryIO] = {}
    path = Path()
    try:
        with contextlib.ExitStack() as stack:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                files[path] = stack.enter_context(open(temporary[path], "wb"))
            for part in parts:
                for path, content in part.items():
                    files[path].write(content)
            for path in paths:
                files[path].flush()
                os.fsync(files[path].fileno())
        for path in paths:
            os.replace(temporary[path], path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; it is as before") from error
    finally:
        for leftover in temporary.values():
            _remove(leftover)


def _remove(path: Path) -> None:
    """Removes a file if it can be; one that stays is overwritten by the next run."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file.

    Raises:
      UserError: naming the file and the reason, if writing fails; the line may then
        stand there in part, without its end.
    """
    with _write_first() as writes:
        if not writes:
            return
        try:
            with path.open("a") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}"
            ) from error


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file line by line, atomically."""
    write_atomically({path: "".join(f"{line}\n" for line in lines).encode()})


def has_file(path: Path) -> bool:
    """Whether it is there; to be asked by all processes."""
    return ask_first(path.exists)


def read_lines(path: Path) -> list[str]:
    """Reads the whole lines of a text file; none if it is not there."""
    return path.read_text().split("\n")[:-1] if has_file(path) else []


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, atomically."""
    write_atomically({path: (json.dumps(content, indent=2) + "\n").encode()})


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz, atomically; read it with `read_arrays`."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically({path: content.getvalue()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz, without pickle.

    Raises:
      ValueError: if it is none, or holds other objects than arrays.
    """
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is no zip archive")
        with np.load(stream, allow_pickle=False) as file:
            return dict(file)


def create_folder(folder: Path) -> None:
    """Creates a folder, and those above it, unless it is there.

    Raises:
      UserError: if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps a second process out of `folder`, creating it if need be.

    Raises:
      UserError: if another process holds it, or it cannot be written.
    """
    create_folder(folder)
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder} is in use by another process; wait for it, or name another "
                "workdir"
            ) from error
        yield
