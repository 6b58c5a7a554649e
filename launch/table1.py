"""Table 1: runs a list of configs and sets their results beside the paper's.

    python -m launch.table1 --configs=camvid_fcn8,camvid_fc_densenet103 \
        --workdir=runs/table1 --minutes=9 -- --config.dataset.options.path=DATA

Every config has a workdir of its own under --workdir; one that differs from an earlier
one in its refiners alone takes over that one's segmenter. When --minutes are over, the
run in progress is told to save and this script ends with status 75 ("try again"):
call it again, until it ends with 0. What stands after -- is handed to every run. The
table is written after each call, of what is finished by then.

--jobs=N, on one GPU that no training fills, runs N processes at once, which share its
memory: the configs', and after a segmenter all refiners of its config. Each prints to
log.txt in its workdir. --jobs=0 runs nothing and writes the table.
"""

import ast
import csv
import functools
import json
import math
import pathlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from absl import app, flags

from iterinf.errors import UserError
from iterinf.files import create_folder, write_atomically
from launch.runs import (
    JOBS,
    UNFINISHED,
    WORKDIR,
    Launcher,
    copy_segmenter,
    describe_segmenter,
    is_finished,
    read_config_file,
    run_in_parts,
)

PAPER = pathlib.Path(__file__).with_name("table1_paper.csv")

_CONFIGS = flags.DEFINE_list("configs", None, "Files of configs/, by their stem.")
_MINUTES = flags.DEFINE_float("minutes", None, "Time limit of this call.")
_REFINERS = "--config.refiners="


def combine_tables(
    tables: Mapping[str, pathlib.Path], paper: pathlib.Path
) -> list[dict[str, str | float | None]]:
    """Sets rows of finished experiments beside the paper's rows of that name.

    Args:
      tables: table.json by config; control rows are left out.
      paper: a csv with columns model and mean_iou, in per cent.

    Returns:
      Rows of model, config, paper, ours, difference, gain, gain_low, gain_high: the
      paper's in its order, one for each config that has it, then those that it does
      not have. None where there is no number.
    """
    with paper.open() as file:
        published = {
            row["model"]: float(row["mean_iou"]) for row in csv.DictReader(file)
        }
    ours: dict[str, list[dict[str, Any]]] = {model: [] for model in published}
    for config, table in tables.items():
        for row in json.loads(table.read_text())["rows"]:
            if not row["is_control"]:
                found = ours.setdefault(row["model"], [])
                found.append(row | {"config": config})
    missing = dict.fromkeys(
        ("config", "mean_iou", "gain", "gain_low", "gain_high"), None
    )
    rows = []
    for model, found in ours.items():
        theirs = published.get(model)
        for row in found or [missing]:
            mean_iou = row["mean_iou"]
            both = theirs is not None and mean_iou is not None
            rows.append(
                {
                    "model": model,
                    "config": row["config"],
                    "paper": theirs,
                    "ours": mean_iou,
                    "difference": mean_iou - theirs if both else None,
                    **{key: row[key] for key in ("gain", "gain_low", "gain_high")},
                }
            )
    return rows


def write_combined_table(
    rows: Sequence[dict[str, str | float | None]], folder: pathlib.Path
) -> None:
    """Writes table1.json, in full precision, and table1.md, with one decimal."""
    header = list(rows[0])
    lines = [header, ["---", "---", *(["---:"] * (len(header) - 2))]]
    for row in rows:
        model, config, *numbers = row.values()
        cells = ["-" if n is None else f"{n:.1f}" for n in numbers]
        lines.append([str(model), str(config or "-"), *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = (
        "Mean IoU on test, in per cent. `gain` is the difference to the plain network "
        "of the same experiment, in points, with its 95% paired interval over images."
    )
    write_atomically(
        {
            folder / "table1.json": (json.dumps(rows, indent=2) + "\n").encode(),
            folder / "table1.md": f"{table}\n\n{note}\n".encode(),
        }
    )
    print(f"\n{table}\n\n{folder / 'table1.md'}")


class _Block(NamedTuple):
    """A config, with the workdir of its numbers."""

    path: pathlib.Path
    workdir: pathlib.Path
    segmenter: str  # see `describe_segmenter`
    refiners: tuple[str, ...]


def _read_block(name: str, root: pathlib.Path, overrides: Sequence[str]) -> _Block:
    path = pathlib.Path(name)
    if path.suffix != ".py":
        path = PAPER.parent.parent / "configs" / f"{name}.py"
    config = read_config_file(path)["get_config"]()
    refiners = config.refiners
    for override in overrides:
        if override.startswith(_REFINERS):
            refiners = ast.literal_eval(override.removeprefix(_REFINERS))
    return _Block(path, root / path.stem, describe_segmenter(config), tuple(refiners))


class _Processes:
    """Runs at most so many at once, until the minutes of this call are over."""

    def __init__(self, launcher: Launcher, overrides: Sequence[str], jobs: int):
        self._launcher = launcher
        self._overrides = overrides
        self.jobs = jobs
        self._places = threading.Semaphore(jobs)
        self._end = time.monotonic() + 60 * (_MINUTES.value or math.inf)
        self._share = {}
        if jobs > 1:
            self._share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}"}

    def run(self, path: pathlib.Path, workdir: pathlib.Path, more: list[str]) -> bool:
        """Runs one, with flags of its own; returns whether it is finished."""
        with self._places:
            left, log = self._end - time.monotonic(), None
            if left <= 0:
                return False
            if self.jobs > 1:
                create_folder(workdir)
                log = workdir / "log.txt"
            try:
                return self._launcher.run(
                    str(path),
                    workdir,
                    [*self._overrides, *more],  # of one given twice the last holds
                    seconds=left if _MINUTES.value else None,
                    log=log,
                    environment=self._share,
                )
            except UserError as error:
                reason = f"{error}, see {log}" if log else str(error)
                raise UserError(reason) from error


def _run_group(processes: _Processes, group: Sequence[_Block]) -> dict[str, bool]:
    """Runs configs that have one segmenter; of each by name, whether it is finished."""
    first, finished = group[0].workdir, {}
    for block in group:
        if is_finished(first):
            copy_segmenter(first, block.workdir)
        run = functools.partial(processes.run, block.path)
        if processes.jobs > 1:
            done = run_in_parts(run, block.workdir, block.refiners)
        else:
            done = run(block.workdir, [])
        finished[block.workdir.name] = done
    return finished


def _run_blocks(processes: _Processes, blocks: Sequence[_Block]) -> dict[str, bool]:
    """Runs configs, at once where they share no segmenter and processes may."""
    groups: dict[str, list[_Block]] = {}
    for block in blocks:
        groups.setdefault(block.segmenter, []).append(block)
    with ThreadPoolExecutor(len(groups) if processes.jobs > 1 else 1) as pool:
        run = functools.partial(_run_group, processes)
        return dict(item for f in pool.map(run, groups.values()) for item in f.items())


def _run(argv: list[str]) -> None:
    root, overrides = pathlib.Path(str(WORKDIR.value)), argv[1:]
    try:
        create_folder(root)
        blocks = [_read_block(name, root, overrides) for name in _CONFIGS.value or []]
        names = [block.workdir.name for block in blocks]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"--configs names {name} twice")
        finished = {name: is_finished(root / name) for name in names}
        if JOBS.value:
            with Launcher() as launcher:
                processes = _Processes(launcher, overrides, JOBS.value)
                finished = _run_blocks(processes, blocks)
        tables = {name: root / name / "results" / "table.json" for name in names}
        tables = {name: table for name, table in tables.items() if table.exists()}
        write_combined_table(combine_tables(tables, PAPER), root)
    except UserError as error:
        sys.exit(f"launch.table1: {error}")
    left = [name for name in names if not finished[name]]
    if left:
        print(f"unfinished: {', '.join(left)}; call again to go on")
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    flags.mark_flags_as_required(["configs", "workdir"])
    app.run(_run)
