"""Progress bars, shown by the first process only."""

import collections
import sys
import time
from typing import Any

import jax
from jaxtyping import Array
from tqdm import tqdm

from iterinf.runtime.devices import MAX_IN_FLIGHT
from iterinf.runtime.distributed import is_first


def create_bar(
    title: str, total: int, unit: str, *, show: bool = True, **options: Any
) -> tqdm:
    """Creates a progress bar, hidden in all processes but the first."""
    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        disable=not show or not is_first(),
        mininterval=0.5 if sys.stderr.isatty() else 30,
        **options,
    )


class StepBar:
    """A progress bar over training steps that the device has finished.

    JAX dispatches steps asynchronously. The host waits here so that only a few steps
    are in flight: the bar is then accurate, few batches are in memory, and signals are
    handled within these steps. The rate is an average over whole epochs, including
    validation but not compilation.
    """

    def __init__(self, title: str, *, total: int, initial: int):
        """Opens the bar at `initial` of `total` steps."""
        self._bar = create_bar(title, total, "step", initial=initial, smoothing=0.0)
        self._in_flight: collections.deque[Array] = collections.deque()
        self._opened = time.monotonic()
        self._is_compiled = False
        self._is_validated = False

    def add(self, done: Array) -> None:
        """Counts a step once `done`, one of its outputs, is computed."""
        self._in_flight.append(done)
        if not self._is_compiled:
            self._is_compiled = True
            self.wait()
            self._leave_out(time.monotonic() - self._opened)
        while len(self._in_flight) > MAX_IN_FLIGHT:
            self._finish_one()

    def wait(self) -> None:
        """Waits until every step is done."""
        while self._in_flight:
            self._finish_one()

    def end_epoch(self, seconds: float, **values: str) -> None:
        """Shows the values of an epoch; `seconds` is the time of its validation."""
        if not self._is_validated:
            self._is_validated = True
            self._leave_out(seconds)
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Closes the bar."""
        self._bar.close()

    def _leave_out(self, seconds: float) -> None:
        """Leaves a time out of the rate."""
        if not self._bar.disable:
            self._bar.start_t += seconds
            # tqdm does not draw the final state of a bar that was never drawn.
            self._bar.last_print_t = max(self._bar.last_print_t, self._bar.start_t)

    def _finish_one(self) -> None:
        jax.block_until_ready(self._in_flight.popleft())
        self._bar.update()
