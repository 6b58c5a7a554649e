"""The processes of one run: all run the same program, the first alone writes files."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from iterinf.errors import UserError

_ADVICE = (
    "lower batch_size or crop_size of the training, or evaluation.batch_size and "
    "evaluation.sweep_batch_size"
)
_silent = False  # whether this is one of several processes, and not the first
_SECONDS = 30  # without a sign of life, after which a process counts as dead


def start_processes(*, coordinator: str, count: int, index: int) -> None:
    """Joins the processes of a run, which must share the file system of the workdir.

    To be called before JAX computes anything.

    Args:
      coordinator: "" for a single process; "auto" where the cluster says all (SLURM,
        Open MPI, TPU pods, Kubernetes); else "host:port" of the first process.
      count: number of processes, for "host:port".
      index: of this one, from 0, for "host:port".

    Raises:
      UserError: if they cannot join, with the reason.
    """
    if not coordinator:
        return
    options: dict[str, Any] = {"heartbeat_timeout_seconds": _SECONDS}
    if coordinator != "auto":
        options |= {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
        }
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"config.processes.coordinator is {coordinator!r}, but the processes "
            f"cannot join: {reason}"
        ) from error
    global _silent
    _silent = not is_first()


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def speaks() -> bool:
    """As `is_first`, for signal handlers: it asks no device, which might wait."""
    return not _silent


def print_once(*lines: str) -> None:
    """Prints lines on standard output, in the first process alone."""
    if is_first():
        print(*lines, sep="\n", flush=True)


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_any(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def ask_first(question: Callable[[], bool]) -> bool:
    """The first process's answer, in all: they then do the same.

    To be asked of files: elsewhere on a shared file system they appear later.
    """
    return is_any(is_first() and question())


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, jax.errors.JaxRuntimeError):
        return str(error).startswith("RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def end_on_errors() -> Iterator[None]:
    """Ends the process with status 1, in one message where the user can act on it.

    Other processes end when they miss this one.
    """
    try:
        yield
    except Exception as error:
        distributed = jax.distributed.is_initialized()
        if isinstance(error, UserError):
            sentence = f"iterinf: {error}"
        elif _is_out_of_memory(error):
            reason = (str(error) or repr(error)).splitlines()[0]
            sentence = f"iterinf: out of memory: {reason}; {_ADVICE}"
        elif not distributed:
            raise
        elif isinstance(error, jax.errors.JaxRuntimeError):
            reason = str(error).splitlines()[0]
            sentence = (
                "iterinf: this run has lost touch with another of its processes: start "
                f"all again with the same commands, and it goes on ({reason})"
            )
        else:
            sentence = traceback.format_exc()
        if not distributed:
            sys.exit(sentence)
        print(sentence, file=sys.stderr, flush=True)
        os._exit(1)  # a clean end would wait for the others, who wait for this one
