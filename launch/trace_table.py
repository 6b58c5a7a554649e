"""Where the time of a trace went: milliseconds of every kind of operation.

    python -m launch.trace_table WORKDIR/refiners/dae_y/trace

Reads the newest trace under the folder, as `--config.trace_steps` or `jax.profiler`
write them. Operations are told apart by the names that XLA gives them on CPUs ("fusion"
is several elementwise ones in a loop), by their category on other devices. Several run
at once where there are several threads or streams: shares are of their sum.
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
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    kind = stats.get("hlo_category") or stats["hlo_op"]
                    sums[shorten(str(kind))] += event.duration_ns
    return sums


def shorten(name: str) -> str:
    """An operation's name without the numbers that tell it from others."""
    return re.sub(r"(\.(clone|remat|\d+))+$", "", name)


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
