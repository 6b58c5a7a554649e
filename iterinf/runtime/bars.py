"""Progress bars, shown by the first process only."""

import collections
import sys
import time

import jax
from jaxtyping import Array
from tqdm import tqdm

from iterinf.runtime.devices import MAX_IN_FLIGHT
from iterinf.runtime.distributed import is_first


def create_bar(
    title: str,
    total: int,
    unit: str,
    *,
    show: bool = True,
    initial: int = 0,
    delay: float = 0.0,
    smoothing: float = 0.3,
) -> tqdm:
    """Creates a progress bar, hidden in all processes but the first.

    Args:
      title: The label of the bar.
      total: The total number of units.
      unit: The name of a unit.
      show: Whether to show the bar.
      initial: The number of units already done.
      delay: The time in seconds before the bar appears.
      smoothing: The smoothing of the rate, from 0 (overall mean) to 1 (latest value).
    """
    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        disable=not show or not is_first(),
        initial=initial,
        delay=delay,
        smoothing=smoothing,
        mininterval=0.5 if sys.stderr.isatty() else 30,
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
        self._is_compiled = False
        self._is_validated = False

    def add(self, done: Array) -> None:
        """Counts a step once `done`, one of its outputs, is computed."""
        self._in_flight.append(done)
        if not self._is_compiled:
            self._is_compiled = True
            self.wait()
            self._start_clock(time.time(), self._bar.n)
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
            start = 0.0 if self._bar.disable else self._bar.start_t + seconds
            self._start_clock(start, getattr(self._bar, "initial", 0))
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Closes the bar."""
        self._bar.close()

    def _start_clock(self, start: float, initial: int) -> None:
        """Restarts the rate from a time and a number of steps."""
        if self._bar.disable:
            return
        self._bar.start_t, self._bar.initial = start, initial
        # tqdm does not draw the final state of a bar that was never drawn.
        self._bar.last_print_t = max(self._bar.last_print_t, start)

    def _finish_one(self) -> None:
        jax.block_until_ready(self._in_flight.popleft())
        self._bar.update()
