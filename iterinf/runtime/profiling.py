"""Where the time goes: traces of JAX's profiler, for TensorBoard or Perfetto.

Of several processes the first alone is traced.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import jax

from iterinf.runtime.distributed import is_first

_FIRST = 10  # steps of a process before those that are traced: they compile


class StepTrace:
    """A trace of some training steps, after the first ten that a process makes."""

    def __init__(self, folder: pathlib.Path, num_steps: int):
        """Traces nothing if there are no steps to trace.

        Args:
          folder: where the trace goes.
          num_steps: that it covers.
        """
        self._folder = folder
        self._last = _FIRST + num_steps * is_first()
        self._num_steps = 0
        self._is_tracing = False

    def advance(self, waits_for: jax.Array) -> None:
        """To be called before every step; starts and ends the trace.

        Args:
          waits_for: a result of the step before.
        """
        if self._last > self._num_steps == _FIRST:
            waits_for.block_until_ready()
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        elif self._is_tracing and self._num_steps == self._last:
            waits_for.block_until_ready()
            self.close()
        self._num_steps += 1

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False


@contextlib.contextmanager
def trace_all(folder: pathlib.Path, *, on: bool) -> Iterator[None]:
    """Traces what is done inside, if it is on."""
    with jax.profiler.trace(folder) if on and is_first() else contextlib.nullcontext():
        yield
