"""Signal handling: SIGTERM checkpoints during training; otherwise signals exit."""

import contextlib
import os
import signal
from typing import Any

import jax

from iterinf.runtime.distributed import is_any, print_once

_STEPS_BETWEEN = 16  # steps between agreements of several processes


def stop_on_signals() -> None:
    """Installs handlers that exit on SIGTERM and Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    """Exits immediately, with code 0 on SIGTERM and 130 on Ctrl-C.

    Files on disk are complete at any time, and training handles SIGTERM itself. An
    exception would be lost inside callbacks of compiled programs, and would make
    writer threads print errors.
    """
    name = signal.Signals(number).name
    say(f"{name}: stopped; the same command resumes")
    os._exit(0 if number == signal.SIGTERM else 130)


def say(message: str) -> None:
    """Prints a message on a new line in the first process; ignores closed streams."""
    with contextlib.suppress(RuntimeError, OSError):
        print_once("", message)


class Interruption:
    """A context that records SIGTERM; an unhandled signal is re-raised on exit."""

    def __enter__(self) -> "Interruption":
        """Installs the handler (only possible in the main thread)."""
        self.requested = False
        self._previous: Any = None
        with contextlib.suppress(ValueError):
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def ends_at(self, step: int) -> bool:
        """Whether to stop before a step; all processes stop at the same step."""
        if jax.process_count() == 1:
            return self.requested
        return step % _STEPS_BETWEEN == 0 and is_any(self.requested)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Restores the previous handler."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if self.requested and kind is None:
            signal.raise_signal(signal.SIGTERM)
