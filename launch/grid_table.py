"""The table of a grid: what models reach over its seeds, at each other setting."""

import csv
import io
import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iterinf.files import write_atomically
from iterinf.report.table import format_gain
from launch.runs import is_finished

Setting = Mapping[str, Any]  # values by the dotted keys that a run changes
Record = dict[str, Any]  # values by column

_VALIDATION = "mean_iou_on_validation"  # as in segmenter/summary.json
_NOTE = (
    "On test: mean IoU in per cent and its difference to the plain network of the same "
    "run, in points; each the mean over runs, its sample standard deviation, smallest "
    "and largest. Runs differ in seeds. Settings are compared on validation, by the "
    "mean of mean IoU there; test is for the one that is chosen."
)


def summarise(tables: Iterable[tuple[Setting, Mapping[str, Any]]]) -> list[Record]:
    """Gathers runs by setting and model, both in the order in which they come.

    Args:
      tables: of each run, what it changes, and its table as `read_table` gives it. The
        spread is over keys named "seed"; the others are columns.

    Returns:
      Records of the settings' keys, model, num_runs, mean_iou_on_validation, mean_iou
      and gain, each of the last two also with _std, _min and _max. None where there is
      no value: a key that a run leaves as it is, validation of a control, the deviation
      of one run.
    """
    groups: dict[str, tuple[Setting, dict[str, list[Record]]]] = {}
    keys: dict[str, None] = {}
    for setting, table in tables:
        kept = {k: v for k, v in setting.items() if k.rpartition(".")[-1] != "seed"}
        keys |= dict.fromkeys(kept)
        _, models = groups.setdefault(repr(sorted(kept.items())), (kept, {}))
        for row in table["rows"]:
            models.setdefault(row["model"], []).append(row)
    return [
        {key: setting.get(key) for key in keys}
        | {"model": model, "num_runs": len(rows)}
        | {_VALIDATION: _average([row[_VALIDATION] for row in rows])}
        | compute_spread("mean_iou", [row["mean_iou"] for row in rows])
        | compute_spread("gain", [row["gain"] for row in rows])
        for setting, models in groups.values()
        for model, rows in models.items()
    ]


def _average(values: Sequence[float | None]) -> float | None:
    """The mean; None if one of them is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def compute_spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation, smallest and largest, by column."""
    return {
        name: statistics.fmean(values),
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def read_table(workdir: pathlib.Path) -> dict[str, Any]:
    """A finished run's table.json, with mean_iou_on_validation in each row.

    That is in per cent, or None: of a control.
    """
    table, config, summary = (
        json.loads((workdir / name).read_text())
        for name in ("results/table.json", "config.json", "segmenter/summary.json")
    )
    plain = config["segmenter"]["title"]
    reached = {plain: 100 * summary[_VALIDATION]}
    for name in config["refiners"]:
        path = workdir / "refiners" / name / "selection.json"
        chosen = json.loads(path.read_text())["refined"]
        title = f"{plain} + {config['refiner'][name]['title']}"
        reached[title] = 100 * chosen["mean_iou"]
    rows = [row | {_VALIDATION: reached.get(row["model"])} for row in table["rows"]]
    return table | {"rows": rows}


def write_grid_table(
    runs: Sequence[tuple[pathlib.Path, Setting]], folder: pathlib.Path
) -> None:
    """Writes table.csv and table.json, in full precision, and table.md.

    Args:
      runs: workdir of each run, and what it changes; those that are not finished are
        named under the table.
      folder: where they go.
    """
    tables = {
        workdir.name: (setting, read_table(workdir))
        for workdir, setting in runs
        if is_finished(workdir)
    }
    left = [workdir.name for workdir, _ in runs if workdir.name not in tables]
    if not tables:
        print("no run is finished yet: no table")
        return
    records = summarise(tables.values())
    origin = {
        name: {key: table["provenance"].get(key) for key in ("commit", "command")}
        for name, (_, table) in tables.items()
    }
    document = {"rows": records, "runs": origin, "unfinished": left}
    table = _format_markdown(records)
    lines = [
        f"- {name}: `{of['commit']}`, `{of['command']}`" for name, of in origin.items()
    ]
    notes = [_NOTE, f"Not finished: {', '.join(left)}."] if left else [_NOTE]
    text = "\n\n".join([table, *notes, "\n".join(lines)])
    write_atomically(
        {
            folder / "table.json": (json.dumps(document, indent=2) + "\n").encode(),
            folder / "table.csv": _format_csv(records).encode(),
            folder / "table.md": f"{text}\n".encode(),
        }
    )
    print(f"\n{table}\n\n{folder / 'table.md'}")


def _format_csv(records: Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _format_markdown(records: Sequence[Record]) -> str:
    keys = list(records[0])
    keys = keys[: keys.index("model")]
    spread = ["±", "min to max"]
    header = [*keys, "model", "runs", "on validation"]
    header += ["mean IoU", *spread, "gain", *spread]
    lines = [header, ["---"] * (len(keys) + 1) + ["---:"] * 8]
    for record in records:
        values = ["-" if record[key] is None else str(record[key]) for key in keys]
        cells = [*values, record["model"], str(record["num_runs"])]
        reached = record[_VALIDATION]
        cells.append("-" if reached is None else f"{reached:.1f}")
        for name, form in (("mean_iou", "{:.1f}".format), ("gain", format_gain)):
            mean, deviation, low, high = (
                record[name + end] for end in ("", "_std", "_min", "_max")
            )
            cells += [
                form(mean),
                "-" if deviation is None else f"{deviation:.1f}",
                f"{form(low)} to {form(high)}",
            ]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
