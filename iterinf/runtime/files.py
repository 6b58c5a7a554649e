"""Atomic writes of result files.

The first process writes; the others wait until it is done.
"""

import collections
import contextlib
import fcntl
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from iterinf.errors import UserError
from iterinf.runtime.distributed import ask_first, is_first, wait_for_all


def write_atomically(contents: Mapping[Path, bytes]) -> None:
    """Writes files atomically.

    All files are written under temporary names and renamed when the last one is on
    disk, so that a full disk leaves every existing file unchanged.

    Raises:
      UserError: If writing fails; names the file and the reason.
    """
    write_in_parts(contents, [contents])


def write_in_parts(
    paths: Collection[Path], parts: Iterable[Mapping[Path, bytes]]
) -> None:
    """Writes files atomically from parts, of which memory holds one at a time.

    Args:
      paths: The files.
      parts: Successive contents by file; every process iterates over them.
    """
    wait_for_all("before writing")
    if is_first():
        _write_in_parts(paths, parts)
    else:
        collections.deque(parts, maxlen=0)
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
        raise UserError(
            f"cannot write {path}: {reason}; any existing file is unchanged"
        ) from error
    finally:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):  # the next run overwrites it
                leftover.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file.

    Raises:
      UserError: If writing fails; the file may then end with a partial line.
    """
    wait_for_all("before writing")
    if is_first():
        with _explain_errors(f"cannot write {path}"), path.open("a") as file:
            file.write(f"{line}\n")
    wait_for_all("after writing")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file line by line, atomically."""
    write_atomically({path: "".join(f"{line}\n" for line in lines).encode()})


def has_file(path: Path) -> bool:
    """Whether the file exists; must be called by all processes."""
    return ask_first(path.exists)


def read_lines(path: Path) -> list[str]:
    """Reads the complete lines of a text file; a missing file has none."""
    return path.read_text().split("\n")[:-1] if has_file(path) else []


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the complete lines of a file of JSON objects; a missing file has none."""
    return [json.loads(line) for line in read_lines(path)]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, atomically."""
    write_atomically({path: (json.dumps(content, indent=2) + "\n").encode()})


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file atomically; `read_arrays` reads it."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically({path: content.getvalue()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file without pickle.

    Raises:
      UserError: If it is missing, damaged or no .npz file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of many kinds, depending on the damage
        raise UserError(
            f"cannot read {path} as arrays: it is damaged or holds other objects"
        ) from error


def create_folder(folder: Path) -> None:
    """Creates a folder and its parents if they do not exist."""
    with _explain_errors(f"cannot write to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks `folder` against other processes, and creates it if necessary.

    Raises:
      UserError: If another process holds the lock, or the folder is not writable.
    """
    create_folder(folder)
    with _explain_errors(f"cannot write to {folder}"):
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder} is in use by another process; wait for it to finish or "
                "choose another workdir"
            ) from error
        yield


@contextlib.contextmanager
def _explain_errors(failure: str) -> Iterator[None]:
    """Converts an OSError to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{failure}: {error.strerror or error}") from error
