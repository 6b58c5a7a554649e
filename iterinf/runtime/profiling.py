"""Traces of JAX's profiler, for TensorBoard or Perfetto, of the first process."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax

from iterinf.runtime.distributed import is_first

_FIRST = 10  # steps before the trace, which include compilation


class StepTrace:
    """A trace of training steps, after the first ten of the process."""

    def __init__(self, folder: pathlib.Path, num_steps: int):
        """Creates a trace of `num_steps` steps, or none if 0."""
        self._folder = folder
        self._last = _FIRST + num_steps * is_first()
        self._num_steps = 0
        self._is_tracing = False

    def advance(self, waits_for: jax.Array) -> None:
        """Starts or ends the trace before a step, after waiting for the last one."""
        if self._last > self._num_steps == _FIRST:
            waits_for.block_until_ready()
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        elif self._is_tracing and self._num_steps == self._last:
            waits_for.block_until_ready()
            self.close()
        self._num_steps += 1

    def close(self) -> None:
        """Ends the trace if it is running."""
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False


@contextlib.contextmanager
def trace_all(folder: pathlib.Path, *, on: bool) -> Iterator[None]:
    """Traces the body of the context if `on`."""
    with jax.profiler.trace(folder) if on and is_first() else contextlib.nullcontext():
        yield
