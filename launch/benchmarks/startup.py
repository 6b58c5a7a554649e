"""From the shell to a package that is ready to compute."""

import functools
import subprocess
import sys
from collections.abc import Iterator

from launch.benchmarks.measure import Case

_OURS = "import jax, iterinf; jax.numpy.ones(3).block_until_ready()"
_THEIRS = "import torch, torch.nn, torch.utils.data; torch.ones(3).sum()"


def list_startup() -> Iterator[Case]:
    """A process that imports everything and adds three numbers."""
    start = functools.partial(subprocess.run, check=True)
    ours, theirs = ([sys.executable, "-c", code] for code in (_OURS, _THEIRS))
    yield Case(
        "startup",
        "import iterinf",
        functools.partial(start, ours),
        (),
        {"import torch": functools.partial(start, theirs)},
    )
