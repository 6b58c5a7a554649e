"""What signals do: SIGTERM saves first in training; otherwise they end the process."""

import contextlib
import os
import signal
from typing import Any

import jax

from iterinf.runtime.distributed import is_any, speaks

_STEPS_BETWEEN = 16  # the moments in which several processes agree


def stop_on_signals() -> None:
    """Lets SIGTERM and Ctrl-C end the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    """Ends the process; what is on disk is whole, at any moment.

    Training listens for SIGTERM itself, to save first. An exception would not do: one
    that is raised inside a callback of a compiled program is lost, and threads that
    still write complain. The status is 0 after SIGTERM, 130 after Ctrl-C.
    """
    name = signal.Signals(number).name
    say(f"{name}: stopped; the same command resumes")
    os._exit(0 if number == signal.SIGTERM else 130)


def say(sentence: str) -> None:
    """Prints on a line of its own, in the first process, if anybody still listens."""
    if not speaks():
        return
    with contextlib.suppress(RuntimeError, OSError):
        print(f"\n{sentence}", flush=True)


class Interruption:
    """Whether SIGTERM has come; a context that listens for it.

    One that nobody heeded before the context ends is sent again, to whoever listened
    before.
    """

    def __enter__(self) -> "Interruption":
        """Starts to listen (in the main thread alone, as Python allows)."""
        self.requested = False
        self._previous: Any = None
        with contextlib.suppress(ValueError):
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def ends_at(self, step: int) -> bool:
        """Whether to end before a step: at once, or all processes at the same one."""
        if jax.process_count() == 1:
            return self.requested
        return step % _STEPS_BETWEEN == 0 and is_any(self.requested)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Gives the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if self.requested and kind is None:
            signal.raise_signal(signal.SIGTERM)
