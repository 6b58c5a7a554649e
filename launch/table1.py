"""Table 1: runs a list of configs and sets their results beside the paper's.

    python -m launch.table1 --configs=camvid_fcn8,camvid_fc_densenet103 \
        --workdir=runs/table1 --minutes=9 -- --config.dataset.options.path=DATA

Every config has its own workdir under --workdir; one that differs from an earlier one
only in its refiners reuses its segmenter. When --minutes are over, the run in progress
saves and this script ends with status 75 ("try again"): call it again, until it ends
with 0. If a run fails the others still run, and the status is 1. Flags after -- are
passed to every run. The table holds the runs finished so far.

--jobs=N, on one GPU that no training fills, runs N processes at once, which share its
memory: the configs', and after a segmenter all refiners of its config. Each prints to
log.txt in its workdir. --jobs=0 runs nothing and writes the table.
"""

import csv
import functools
import json
import math
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections.config_flags.tuple_parser import TupleParser

from iterinf.config import find_followed
from iterinf.errors import UserError
from iterinf.runtime.files import create_folder, write_atomically
from launch.runs import (
    JOBS,
    MINUTES,
    UNFINISHED,
    WORKDIR,
    Launcher,
    copy_segmenter,
    describe_segmenter,
    is_finished,
    read_config_file,
)

PAPER = pathlib.Path(__file__).with_name("table1_paper.csv")

_CONFIGS = flags.DEFINE_list("configs", None, "Files of configs/, by their stem.")
_REFINERS = "--config.refiners="
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU's memory


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
        "Mean IoU on test, in per cent. `gain` is the difference to the segmenter "
        "of the same experiment, in points, with its 95% paired interval over images."
    )
    write_atomically(
        {
            folder / "table1.json": (json.dumps(rows, indent=2) + "\n").encode(),
            folder / "table1.md": f"{table}\n\n{note}\n".encode(),
        }
    )
    print(f"\n{table}\n\n{folder / 'table1.md'}")


class Block(NamedTuple):
    """A config, with the workdir of its numbers."""

    path: pathlib.Path
    workdir: pathlib.Path
    segmenter: str  # see `describe_segmenter`
    refiners: tuple[str, ...]
    follows: Mapping[str, str] = MappingProxyType({})  # refiner -> what it starts from


def _read_block(name: str, root: pathlib.Path, refiners: tuple[str, ...]) -> Block:
    """Reads a config; `refiners`, if any, replace its list."""
    path = pathlib.Path(name)
    if path.suffix != ".py":
        path = PAPER.parent.parent / "configs" / f"{name}.py"
    config = read_config_file(path)["get_config"]()
    refiners = refiners or tuple(config.refiners)
    known = {name: find_followed(settings) for name, settings in config.refiner.items()}
    follows = {name: known[name] for name in refiners if known.get(name)}
    return Block(path, root / path.stem, describe_segmenter(config), refiners, follows)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Parts --config.refiners=... from the other flags.

    Raises:
      UserError: if its value is no tuple of names.
    """
    others = [flag for flag in overrides if not flag.startswith(_REFINERS)]
    refiners: tuple[str, ...] = ()
    for flag in overrides:
        if flag.startswith(_REFINERS):
            try:
                refiners += tuple(TupleParser().parse(flag.removeprefix(_REFINERS)))
            except ValueError as error:
                raise UserError(f"{flag}: expected a tuple of names") from error
    return others, refiners


class Processes:
    """Runs at most so many at once, until the minutes of this call are over."""

    def __init__(self, launcher: Launcher, overrides: Sequence[str], jobs: int):
        self._launcher = launcher
        self._overrides = overrides
        self._places = threading.Semaphore(jobs)
        self._end = time.monotonic() + 60 * (MINUTES.value or math.inf)
        self._share = {}
        if jobs > 1 and _FRACTION not in os.environ:
            self._share = {_FRACTION: f"{0.9 / jobs:.3f}"}
        self.jobs = jobs
        self.errors: list[str] = []  # sentences of those that failed

    def run(
        self,
        block: Block,
        workdir: pathlib.Path,
        *,
        refiners: tuple[str, ...],
        mode: str = "run",
        prepare: Callable[[], None] | None = None,
    ) -> bool:
        """Runs one.

        Args:
          block: of its config.
          workdir: The workdir.
          refiners: of the config.
          mode: of `iterinf.main`.
          prepare: what comes before, if there is time for it.

        Returns:
          Whether it is finished.
        """
        with self._places:
            left, log = self._end - time.monotonic(), None
            if left <= 0 or self._launcher.is_stopped():
                return False
            try:
                if prepare:
                    prepare()
                if self.jobs > 1:
                    create_folder(workdir)
                    log = workdir / "log.txt"
                flags = [*self._overrides, f"{_REFINERS}{refiners!r}"]
                return self._launcher.run(
                    str(block.path),
                    workdir,
                    flags if mode == "run" else [*flags, f"--mode={mode}"],
                    seconds=left if MINUTES.value else None,
                    log=log,
                    environment=self._share,
                )
            except UserError as error:
                self.errors.append(f"{error}, see {log}" if log else str(error))
                return False


def run_apart(processes: Processes, block: Block) -> bool:
    """Trains a segmenter, then all refiners at once; the numbers are those of one run.

    Each refiner runs in its own workdir in WORKDIR.parts, on a copy of the segmenter.
    Once its choice is made, its folder moves into the whole; the test split, and the
    table, are left to a last run, of those refiners that have come so far. So are the
    choices of refiners that follow another.

    Returns:
      Whether all have.
    """
    workdir = block.workdir
    run = functools.partial(processes.run, block)
    if not (workdir / "segmenter" / "summary.json").exists():
        if not run(workdir, refiners=block.refiners, mode="train_segmenter"):
            return False

    def run_part(name: str) -> bool:
        whole = workdir / "refiners" / name
        part = workdir.with_name(f"{workdir.name}.parts") / name
        own = part / "refiners" / name
        if (whole / "selection.json").exists():
            return True

        def prepare() -> None:
            copy_segmenter(workdir, part)
            if whole.exists() and not own.exists():  # begun by a run of the whole
                _move(whole, own)

        if not run(part, refiners=(name,), mode="sweep", prepare=prepare):
            return False
        _move(own, whole)
        shutil.rmtree(part / "segmenter", ignore_errors=True)
        return True

    apart = [name for name in block.refiners if name not in block.follows]
    with ThreadPoolExecutor(max(1, len(apart))) as pool:
        finished = dict(zip(apart, pool.map(run_part, apart), strict=True))
    chosen = tuple(n for n in block.refiners if finished.get(block.follows.get(n, n)))
    return bool(chosen) and run(workdir, refiners=chosen) and chosen == block.refiners


def _move(source: pathlib.Path, target: pathlib.Path) -> None:
    create_folder(target.parent)
    try:
        source.rename(target)
    except OSError as error:
        raise UserError(
            f"cannot move {source} to {target}: {error.strerror}"
        ) from error


def _run_group(processes: Processes, group: Sequence[Block]) -> dict[str, bool]:
    """Runs configs that have one segmenter; of each by name, whether it is finished."""
    first, finished = group[0].workdir, {}
    for block in group:
        if is_finished(first):
            copy_segmenter(first, block.workdir)
        if processes.jobs > 1:
            done = run_apart(processes, block)
        else:
            done = processes.run(block, block.workdir, refiners=block.refiners)
        finished[block.workdir.name] = done
    return finished


def _run_blocks(processes: Processes, blocks: Sequence[Block]) -> dict[str, bool]:
    """Runs configs, at once where they share no segmenter and processes may."""
    groups: dict[str, list[Block]] = {}
    for block in blocks:
        groups.setdefault(block.segmenter, []).append(block)
    with ThreadPoolExecutor(len(groups) if processes.jobs > 1 else 1) as pool:
        run = functools.partial(_run_group, processes)
        return dict(item for f in pool.map(run, groups.values()) for item in f.items())


def _run(argv: list[str]) -> None:
    root, errors = pathlib.Path(str(WORKDIR.value)), []
    try:
        create_folder(root)
        if not _CONFIGS.value:
            raise UserError("--configs names none")
        overrides, refiners = split_overrides(argv[1:])
        blocks = [_read_block(name, root, refiners) for name in _CONFIGS.value]
        names = [block.workdir.name for block in blocks]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"--configs names {name} twice")
        finished = {name: is_finished(root / name) for name in names}
        if JOBS.value:
            with Launcher() as launcher:
                processes = Processes(launcher, overrides, JOBS.value)
                finished = _run_blocks(processes, blocks)
            errors = processes.errors
        tables = {name: root / name / "results" / "table.json" for name in names}
        tables = {name: table for name, table in tables.items() if table.exists()}
        write_combined_table(combine_tables(tables, PAPER), root)
    except UserError as error:
        errors = [str(error)]
    if errors:
        sys.exit("\n".join(f"launch.table1: {error}" for error in errors))
    left = [name for name in names if not finished[name]]
    if left:
        print(f"unfinished: {', '.join(left)}; the same command resumes")
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    flags.mark_flags_as_required(["configs", "workdir"])
    app.run(_run)
