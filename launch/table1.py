"""Table 1: runs a list of configs and sets their results beside the paper's.

    python -m launch.table1 --configs=camvid_fcn8,camvid_fc_densenet103 \
        --workdir=runs/table1 --minutes=9 -- --config.dataset.options.path=DATA

Every config has a workdir of its own under --workdir; one that differs from an earlier
one in its refiners alone takes over that one's segmenter. When --minutes are over, the
run in progress is told to save and this script ends with status 75 ("try again"):
call it again, until it ends with 0. What stands after -- is handed to every run. The
table is written after each call, of what is finished by then.
"""

import csv
import functools
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from iterinf.errors import UserError
from iterinf.files import create_folder, write_atomically
from launch.runs import (
    UNFINISHED,
    Launcher,
    copy_segmenter,
    describe_segmenter,
    read_config_file,
)

PAPER = pathlib.Path(__file__).with_name("table1_paper.csv")

_CONFIGS = flags.DEFINE_list("configs", None, "Files of configs/, by their stem.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Holds a workdir a config.")
_MINUTES = flags.DEFINE_float("minutes", None, "Time limit of this call.")


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


def _run(argv: list[str]) -> None:
    started = time.monotonic()
    root, unfinished = pathlib.Path(str(_WORKDIR.value)), []
    first: dict[str, pathlib.Path] = {}  # workdir by what trains a segmenter
    tables: dict[str, pathlib.Path] = {}
    try:
        create_folder(root)
        with Launcher() as launcher:
            for name in _CONFIGS.value or []:
                left = None
                if _MINUTES.value:
                    left = 60 * _MINUTES.value - (time.monotonic() - started)
                path = pathlib.Path(name)
                if path.suffix != ".py":
                    path = PAPER.parent.parent / "configs" / f"{name}.py"
                workdir = root / path.stem
                if path.stem in tables:
                    raise UserError(f"--configs names {path.stem} twice")
                tables[path.stem] = workdir / "results" / "table.json"
                if path.is_file():
                    config = read_config_file(path)["get_config"]()
                    source = first.setdefault(describe_segmenter(config), workdir)
                    copy_segmenter(source, workdir)
                run = functools.partial(launcher.run, str(path), workdir, argv[1:])
                in_time = left is None or left > 0
                if not in_time or not run(seconds=left):
                    unfinished.append(name)
        tables = {name: table for name, table in tables.items() if table.exists()}
        write_combined_table(combine_tables(tables, PAPER), root)
    except UserError as error:
        sys.exit(f"launch.table1: {error}")
    if unfinished:
        print(f"unfinished: {', '.join(unfinished)}; call again to go on")
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    flags.mark_flags_as_required(["configs", "workdir"])
    app.run(_run)
