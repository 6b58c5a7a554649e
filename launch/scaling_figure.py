"""Draws docs/scaling.png: seconds of a sweep against what it is asked for.

    python -m launch.scaling_figure

Images, iterations, step sizes, images at a time and, on a CPU, virtual devices, each
varied alone; medians of 3 calls after one that compiles. Prints the numbers.
"""

import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from iterinf import Batch, Candidate, create_refiner, create_segmenter
from iterinf.evaluation.sweep import count_refinements
from iterinf.evaluation.tally import Spec
from iterinf.runtime.xla import convolve_on_all_cores
from launch.benchmarks.measure import time_interleaved

_OUTPUT = Path(__file__).parent.parent / "docs" / "scaling.png"
_USUAL = {"images": 8, "iterations": 8, "step sizes": 4, "images at a time": 2}
_VARIED = {
    "images": (4, 8, 16, 32),
    "iterations": (4, 8, 16, 32),
    "step sizes": (1, 2, 4, 8),
    "images at a time": (1, 2, 4),
}
_DEVICES = (1, 2, 4)
_SHAPE, _WIDTHS, _NUM_CLASSES, _REPEATS = (64, 96), (16, 32, 64, 128, 256), 11, 3


def main() -> None:
    """Measures and draws."""
    convolve_on_all_cores()
    if len(sys.argv) > 1:  # by a call of this one
        print(time_sweep(**_USUAL | {"images at a time": 4}))
        return
    seconds = {
        name: {value: time_sweep(**_USUAL | {name: value}) for value in values}
        for name, values in _VARIED.items()
    }
    if jax.default_backend() == "cpu":
        seconds["virtual devices"] = {n: time_on_devices(n) for n in _DEVICES}
    print(json.dumps(seconds))
    draw(seconds)


def draw(seconds: dict[str, dict[int, float]]) -> None:
    """Draws the figure: a panel for what varies, seconds by its values."""
    figure = Figure(figsize=(3 * len(seconds), 3), layout="constrained")
    panels = figure.subplots(1, len(seconds), sharey=True)
    for axes, (name, found) in zip(panels, seconds.items(), strict=True):
        x, y = np.asarray(list(found)), np.asarray(list(found.values()))
        axes.loglog(x, y, "o-")
        if name in ("images", "iterations", "step sizes"):
            axes.loglog(x, y[-1] * x / x[-1], "--", color="gray", label="linear")
            axes.legend(frameon=False)
        axes.set_xlabel(name)
        axes.set_xticks(x, map(str, x))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    low, high = (math.log2(y) for y in panels[0].get_ylim())
    ticks = [2.0**i for i in range(math.ceil(low), math.floor(high) + 1)]
    panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_ylabel("seconds of a sweep")
    figure.savefig(_OUTPUT, dpi=100)


def time_sweep(**work: int) -> float:
    """Seconds of one call; `work` has the keys of `_USUAL`."""
    seconds = time_interleaved({"sweep": _make_sweep(**work)}, _REPEATS)
    return statistics.median(seconds["sweep"])


def time_on_devices(count: int) -> float:
    """The same in a process whose CPU counts as several devices."""
    command = [sys.executable, "-m", "launch.scaling_figure", "worker"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}
    return float(subprocess.check_output(command, env=environment))


def _make_sweep(**work: int) -> Callable[[], object]:
    """With y and h given, so that the refiner's work alone is timed."""
    generator = np.random.default_rng(0)
    shape = (work["images"], *_SHAPE)
    image = generator.integers(0, 256, (*shape, 3), np.uint8)
    y = generator.dirichlet(np.ones(_NUM_CLASSES), shape).astype(np.float32)
    h = generator.normal(size=(shape[0], *(n // 16 for n in _SHAPE), 128))
    outputs = {"probabilities": y, "pool4": h.astype(np.float32)}
    label = generator.integers(0, _NUM_CLASSES, shape)
    split = Batch(*jax.device_get((image, label, outputs)))
    refiner = create_refiner("dae", num_classes=_NUM_CLASSES, widths=_WIDTHS)
    parts = jax.tree.map(jnp.asarray, (y[:1], {"pool4": h[:1]}, image[:1]))
    first = Candidate(*parts)
    return functools.partial(
        count_refinements,
        create_segmenter("precomputed", num_classes=_NUM_CLASSES),
        refiner,
        {"segmenter": {}, "refiner": jax.jit(refiner.init)(jax.random.key(0), first)},
        split,
        step_sizes=list(
            itertools.islice(itertools.cycle((0.02, 0.1, 0.5)), work["step sizes"])
        ),
        num_iterations=work["iterations"],
        spec=Spec(_NUM_CLASSES, None),
        batch_size=work["images at a time"],
    )


if __name__ == "__main__":
    main()
