"""Measures calls of this project beside their peers.

    python -m launch.benchmarks [NAME...]

A line of JSON a case: seconds and ratios, FLOP/s, memory, seconds of compiling. Needs
the extra `bench`. Names: those of _CASES; all without any. What fails is told on
stderr, in a line, and the others continue.
"""

import importlib
import json
import math
import os
import pathlib
import sys

from absl import app, flags, logging

from iterinf.errors import UserError
from iterinf.runtime.xla import convolve_on_all_cores
from launch.benchmarks.measure import measure, summarize, trace

_REPEATS = flags.DEFINE_integer("repeats", 7, "Calls that a median is over.", 1)
_LIMIT = flags.DEFINE_float(
    "limit", math.inf, "Seconds of calls of a case after three of each side."
)
_COMPILE_TIME = flags.DEFINE_bool(
    "compile_time", True, "Whether to time compiling, which compiles twice more."
)
_TRACE = flags.DEFINE_string(
    "trace", None, "A folder for a trace of a call of every case; none without."
)

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
    # A GPU's memory is for both sides.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    names = argv[1:] or list(_CASES)
    for name in names:
        if name not in _CASES:
            sys.exit(f"launch.benchmarks: unknown {name!r}; known: {', '.join(_CASES)}")
    failed = False
    for name in names:
        try:
            _measure_cases(name)
        except UserError as error:
            sys.exit(f"launch.benchmarks: {error}")
        except Exception as error:
            failed = True
            advice = "; pip install -e '.[bench]'" * isinstance(error, ImportError)
            print(f"{name}: {summarize(error)}{advice}", file=sys.stderr, flush=True)
    if failed:
        sys.exit(1)


def _measure_cases(name: str) -> None:
    module = importlib.import_module(f"launch.benchmarks.{_CASES[name]}")
    for case in getattr(module, f"list_{name}")():
        result = measure(
            case,
            repeats=_REPEATS.value,
            limit=_LIMIT.value,
            compile_time=_COMPILE_TIME.value,
        )
        print(json.dumps(result), flush=True)
        if _TRACE.value:
            trace(case, pathlib.Path(_TRACE.value))


if __name__ == "__main__":
    app.run(_run)
