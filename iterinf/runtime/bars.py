"""Progress bars: one look, shown by the first process alone."""

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
      title: the work that is shown.
      total: number of units in all.
      unit: what is counted.
      show: whether to show it at all.
      initial: units done before.
      delay: seconds before it appears; quick work shows none.
      smoothing: of the rate: 0 averages over the whole time, 1 takes the last.
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
    """A bar over training steps that the device has finished.

    JAX returns before a step is computed. Here the host waits so that only a few steps
    are handed out and not yet done: the bar is then true, batches in memory are few,
    and a signal is answered within these steps. The rate is an average over whole
    epochs, validation included, without the time to compile the first of each.
    """

    def __init__(self, title: str, *, total: int, initial: int):
        """Opens the bar at `initial` of `total` steps."""
        self._bar = create_bar(title, total, "step", initial=initial, smoothing=0.0)
        self._in_flight: collections.deque[Array] = collections.deque()
        self._is_compiled = False
        self._is_validated = False

    def add(self, done: Array) -> None:
        """Counts a step once `done`, an output of it, is computed."""
        self._in_flight.append(done)
        if not self._is_compiled:
            self._is_compiled = True
            self.wait()
            self._start_clock(time.time(), self._bar.n)
        while len(self._in_flight) > MAX_IN_FLIGHT:
            self._finish_one()

    def wait(self) -> None:
        """Returns when every step is done."""
        while self._in_flight:
            self._finish_one()

    def end_epoch(self, seconds: float, **values: str) -> None:
        """Shows values of an epoch whose validation took some seconds."""
        if not self._is_validated:
            self._is_validated = True
            start = 0.0 if self._bar.disable else self._bar.start_t + seconds
            self._start_clock(start, getattr(self._bar, "initial", 0))
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def _start_clock(self, start: float, initial: int) -> None:
        """Lets the rate count from a time and a number of steps on."""
        if self._bar.disable:
            return
        self._bar.start_t, self._bar.initial = start, initial
        # tqdm shows no end of a bar that seems never to have been shown.
        self._bar.last_print_t = max(self._bar.last_print_t, start)

    def _finish_one(self) -> None:
        jax.block_until_ready(self._in_flight.popleft())
        self._bar.update()
