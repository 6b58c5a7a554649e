"""Multi-process runs: all processes run the same program, only the first writes."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from iterinf.errors import UserError, summarise

_ADVICE = (
    "lower batch_size or crop_size of the training, or evaluation.batch_size and "
    "evaluation.sweep_batch_size"
)
_silent = False  # True in every process but the first
_SECONDS = 30  # heartbeat timeout


def start_processes(*, coordinator: str, count: int, index: int) -> None:
    """Joins the processes of a run, which must share the file system of the workdir.

    Must be called before JAX computes anything.

    Args:
      coordinator: "" for a single process, "auto" for detection from the cluster
        (SLURM, Open MPI, TPU pods, Kubernetes), or "host:port" of the first process.
      count: The number of processes; used with "host:port".
      index: The index of this process, from 0; used with "host:port".

    Raises:
      UserError: If the processes cannot join.
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
        raise UserError(
            f"cannot join the processes of config.processes.coordinator "
            f"{coordinator!r}: {summarise(error)}"
        ) from error
    global _silent
    _silent = not is_first()


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def print_once(*lines: str) -> None:
    """Prints lines in the first process; never waits for a device."""
    if not _silent:
        print(*lines, sep="\n", flush=True)


def wait_for_all(name: str) -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_any(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def ask_first(question: Callable[[], bool]) -> bool:
    """Returns the first process's answer in all processes.

    Use it for the existence of files, which may appear later on other hosts of a
    shared file system.
    """
    return is_any(is_first() and question())


@contextlib.contextmanager
def end_on_errors() -> Iterator[None]:
    """Exits with code 1 on an error; errors that a user can fix are one line.

    Other processes end when they lose this one.
    """
    try:
        yield
    except Exception as error:
        distributed = jax.distributed.is_initialized()
        is_jax_error = isinstance(error, jax.errors.JaxRuntimeError)
        reason = summarise(error)
        if isinstance(error, UserError):
            message = f"iterinf: {error}"
        elif isinstance(error, MemoryError) or (
            is_jax_error and reason.startswith("RESOURCE_EXHAUSTED")
        ):
            message = f"iterinf: out of memory: {reason}; {_ADVICE}"
        elif not distributed:
            raise
        elif is_jax_error:
            message = (
                "iterinf: lost a peer process; restart all processes with the same "
                f"commands to resume ({reason})"
            )
        else:
            message = traceback.format_exc()
        if not distributed:
            sys.exit(message)
        print(message, file=sys.stderr, flush=True)
        os._exit(1)  # a clean exit would wait for the others, which wait for this one
