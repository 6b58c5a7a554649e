"""Measures calls of this project beside their peers.

    python -m launch.benchmarks [NAME...]

A line of JSON a case: seconds and ratios, FLOP/s, memory, seconds of compiling. Needs
the extra `bench`. Names: those of _CASES; all without any.
"""

import importlib
import json
import sys

from absl import app, flags, logging

from iterinf.compilation import convolve_on_all_cores
from iterinf.errors import UserError

_REPEATS = flags.DEFINE_integer("repeats", 7, "Calls that a median is over.", 1)

_CASES = {
    "dae_forward": "networks",
    "dae_train_step": "networks",
    "dae_convolutions": "convolutions",
    "fc_densenet_forward": "networks",
    "fc_densenet_train_step": "networks",
    "fc_densenet_convolutions": "convolutions",
    "switches": "pooling",
    "sweep": "sweeps",
    "dense_crf": "crf",
    "loader": "inputs",
    "startup": "startup",
}


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    convolve_on_all_cores()
    names = argv[1:] or list(_CASES)
    for name in names:
        if name not in _CASES:
            sys.exit(f"launch.benchmarks: unknown {name!r}; known: {', '.join(_CASES)}")
    try:
        from launch.benchmarks.measure import measure, measure_peak

        peak = measure_peak()
        for name in names:
            module = importlib.import_module(f"launch.benchmarks.{_CASES[name]}")
            for case in getattr(module, f"list_{name}")():
                result = measure(case, repeats=_REPEATS.value, peak=peak)
                print(json.dumps(result), flush=True)
    except UserError as error:
        sys.exit(f"launch.benchmarks: {error}")
    except ImportError as error:
        sys.exit(f"launch.benchmarks: {error}; pip install -e '.[bench]'")


if __name__ == "__main__":
    app.run(_run)
