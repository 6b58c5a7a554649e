"""Where the time of a trace went: milliseconds of every kind of operation.

    python -m launch.trace_table WORKDIR/refiners/dae_y/trace

Reads the newest trace under the folder, as `--config.trace_steps` or `jax.profiler`
write them. Operations are told apart by the names that XLA gives them on CPUs and GPUs
("fusion" is several elementwise ones in a loop; on GPUs kernels that XLA names no
operation for, as those of CUDA graphs, by their own), by their category on other
devices. Several run at once where there are several threads or streams: shares are of
their sum.
"""

import collections
import pathlib
import re
import sys

from absl import app
from jax.profiler import ProfileData

_MOST = 15  # kinds that get a line


def sum_by_kind(path: pathlib.Path) -> collections.Counter[str]:
    """Nanoseconds of every kind of operation in an .xplane.pb."""
    sums: collections.Counter[str] = collections.Counter()
    lines = [
        (f"{plane.name} {line.name}", line)
        for plane in ProfileData.from_file(str(path)).planes
        for line in plane.lines
    ]
    # What a GPU did; the host's lines hold the same operations, as they are started.
    streams = [line for name, line in lines if re.match("/device:GPU.* Stream", name)]
    for line in streams or [line for _, line in lines]:
        for event in line.events:
            stats = dict(event.stats)
            kind = stats.get("hlo_category") or stats.get("hlo_op")
            if kind is None and streams:
                kind = event.name
            if kind is not None:
                sums[shorten(str(kind))] += event.duration_ns
    return sums


def shorten(name: str) -> str:
    """The name of an operation or kernel without what tells it from others.

    Those are numbers, and the arguments of C++.
    """
    name = re.split("[<(]", name.removeprefix("void "))[0]
    return re.sub(r"([._](clone|remat|\d+))+$", "", name)


def _run(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("launch.trace_table: expected one folder")
    paths = pathlib.Path(argv[1]).glob("**/*.xplane.pb")
    path = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    sums = sum_by_kind(path) if path else None
    if not sums:
        sys.exit(f"launch.trace_table: no trace of compiled programs in {argv[1]}")
    total = sum(sums.values())
    print("| operations | ms | share |\n|---|---:|---:|")
    for kind, nanoseconds in [*sums.most_common(_MOST), ("sum of all", total)]:
        print(f"| {kind} | {nanoseconds / 1e6:.1f} | {nanoseconds / total:.0%} |")


if __name__ == "__main__":
    app.run(_run)
