"""From the shell to a package that is ready to compute."""

import functools
import subprocess
import sys
from collections.abc import Iterator

from launch.benchmarks.measure import Case
from launch.benchmarks.torch_networks import choose_device

_OURS = "import jax, iterinf; jax.numpy.ones(3).block_until_ready()"
_THEIRS = (
    "import torch, torch.nn, torch.utils.data; torch.ones(3, device={!r}).tolist()"
)


def list_startup() -> Iterator[Case]:
    """A process that imports everything and has three numbers on the device."""
    start = functools.partial(subprocess.run, check=True)
    codes = (_OURS, _THEIRS.format(choose_device()))
    ours, theirs = ([sys.executable, "-c", code] for code in codes)
    yield Case(
        "startup",
        "import iterinf",
        functools.partial(start, ours),
        (),
        {"import torch": functools.partial(start, theirs)},
    )
