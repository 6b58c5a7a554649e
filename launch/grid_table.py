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

_NOTE = (
    "On test: mean IoU in per cent and its difference to the plain network of the same "
    "run, in points; each the mean over runs, its sample standard deviation, smallest "
    "and largest. Runs differ in seeds."
)


def summarise(tables: Iterable[tuple[Setting, Mapping[str, Any]]]) -> list[Record]:
    """Gathers runs by setting and model, both in the order in which they come.

    Args:
      tables: of each run, what it changes, and its table.json. The spread is over keys
        named "seed"; the others are columns.

    Returns:
      Records of the settings' keys, model, num_runs, mean_iou and gain, each of the two
      also with _std, _min and _max. None where there is no value: a key that a run
      leaves as it is, the deviation of one run.
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
        | compute_spread("mean_iou", [row["mean_iou"] for row in rows])
        | compute_spread("gain", [row["gain"] for row in rows])
        for setting, models in groups.values()
        for model, rows in models.items()
    ]


def compute_spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation, smallest and largest, by column."""
    return {
        name: statistics.fmean(values),
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


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
        workdir.name: (
            setting,
            json.loads((workdir / "results" / "table.json").read_text()),
        )
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
    header = [*keys, "model", "runs", "mean IoU", *spread, "gain", *spread]
    lines = [header, ["---"] * (len(keys) + 1) + ["---:"] * 7]
    for record in records:
        values = ["-" if record[key] is None else str(record[key]) for key in keys]
        cells = [*values, record["model"], str(record["num_runs"])]
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
