"""The table of a grid: what models reach over its seeds, at each other setting."""

import csv
import io
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from iterinf.report.table import (
    DECIMALS,
    TITLES,
    format_gain,
    format_markdown_lines,
)
from iterinf.runtime.files import write_atomically
from launch.runs import is_finished

Setting = Mapping[str, Any]  # values by the dotted keys that a run changes
Record = dict[str, Any]  # values by column

_VALIDATION = "mean_iou_on_validation"  # as in segmenter/summary.json
_NOTE = (
    "On test: mean IoU in per cent and its difference to the segmenter of the same "
    "run, in points; each the mean over runs, its sample standard deviation, smallest "
    "and largest. Runs differ in seeds. Settings are compared on validation, by the "
    "mean of mean IoU there; test is for the one that is chosen. Differences to single "
    "steps and to the control without y: mean over runs; above 0, below 0: in how many "
    "runs the 95% interval over images lies there."
)


def summarise(tables: Iterable[tuple[Setting, Mapping[str, Any]]]) -> list[Record]:
    """Gathers runs by setting and model, both in the order in which they come.

    Args:
      tables: of each run, what it changes, and its table as `read_table` gives it. The
        spread is over keys named "seed"; the others are columns.

    Returns:
      Records of the settings' keys, model, num_runs, mean_iou_on_validation, and
      mean_iou, gain and the measures of TITLES, each of these also with _std, _min and
      _max. None where there is no value: a key that a run leaves as it is, validation
      of a control, the deviation of one run, a measure of an earlier version.
    """
    keys, groups = _group(tables, lambda table: table["rows"], "model")
    return [
        {key: setting.get(key) for key in keys}
        | {"model": model, "num_runs": len(rows)}
        | {_VALIDATION: _average([row[_VALIDATION] for row in rows])}
        | compute_spread("mean_iou", [row["mean_iou"] for row in rows])
        | compute_spread("gain", [row["gain"] for row in rows])
        | {k: v for name in TITLES for k, v in _spread_if_known(name, rows).items()}
        for setting, (model,), rows in groups
    ]


def summarise_differences(
    tables: Iterable[tuple[Setting, Mapping[str, Any]]],
) -> list[Record]:
    """Gathers the differences between refiners and their controls over seeds.

    Args:
      tables: as for `summarise`.

    Returns:
      Records of the settings' keys, model, over, measure, num_runs, difference with
      _std, _min and _max, and num_above, num_below: the runs whose 95% interval over
      images lies above, or below, zero.
    """
    keys, groups = _group(
        tables, lambda table: table.get("differences", []), "model", "over"
    )
    records = []
    for setting, (model, over), found in groups:
        for measure in (name for name in found[0] if name not in ("model", "over")):
            intervals = [one[measure] for one in found]
            if any(value is None for interval in intervals for value in interval):
                continue
            records.append(
                {key: setting.get(key) for key in keys}
                | {"model": model, "over": over, "measure": measure}
                | {"num_runs": len(intervals)}
                | compute_spread("difference", [gain for gain, _, _ in intervals])
                | {"num_above": sum(low > 0 for _, low, _ in intervals)}
                | {"num_below": sum(high < 0 for _, _, high in intervals)}
            )
    return records


def _group(
    tables: Iterable[tuple[Setting, Mapping[str, Any]]],
    list_records: Callable[[Mapping[str, Any]], list[Record]],
    *names: str,
) -> tuple[list[str], list[tuple[Setting, tuple[str, ...], list[Record]]]]:
    """Records of all runs by setting, seeds left out, and by some of their columns."""
    groups: dict[str, tuple[Setting, dict[tuple[str, ...], list[Record]]]] = {}
    keys: dict[str, None] = {}
    for setting, table in tables:
        kept = {k: v for k, v in setting.items() if k.rpartition(".")[-1] != "seed"}
        keys |= dict.fromkeys(kept)
        _, found = groups.setdefault(repr(sorted(kept.items())), (kept, {}))
        for record in list_records(table):
            place = tuple(record[name] for name in names)
            found.setdefault(place, []).append(record)
    flat = [
        (setting, place, records)
        for setting, found in groups.values()
        for place, records in found.items()
    ]
    return list(keys), flat


def _spread_if_known(name: str, rows: Sequence[Record]) -> Record:
    """`compute_spread`, or None where a run does not know the measure."""
    values = [row[name] for row in rows if name in row and row[name] is not None]
    if len(values) == len(rows):
        return compute_spread(name, values)
    return dict.fromkeys((name, f"{name}_std", f"{name}_min", f"{name}_max"))


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
    differences = summarise_differences(tables.values())
    origin = {
        name: {key: table["provenance"].get(key) for key in ("commit", "command")}
        for name, (_, table) in tables.items()
    }
    document = {
        "rows": records,
        "differences": differences,
        "runs": origin,
        "unfinished": left,
    }
    table = "\n\n".join(
        [_format_markdown(records), *_format_measures(records)]
        + ([_format_differences(differences)] if differences else [])
    )
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
    keys = _list_keys(records, "model")
    spread = ["±", "min to max"]
    header = [*keys, "model", "runs", "on validation"]
    header += ["mean IoU", *spread, "gain", *spread]
    lines = [header, ["---"] * (len(keys) + 1) + ["---:"] * 8]
    for record in records:
        cells = [*_format_setting(record, keys), record["model"]]
        cells.append(str(record["num_runs"]))
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
        lines.append(cells)
    return format_markdown_lines(lines)


def _format_measures(records: Sequence[Record]) -> list[str]:
    """A table of the measures beside mean IoU, of rows that know them all."""
    known = [r for r in records if all(r[name] is not None for name in TITLES)]
    if not known:
        return []
    keys = _list_keys(records, "model")
    lines = [[*keys, "model"], ["---"] * (len(keys) + 1)]
    for title in TITLES.values():
        lines[0] += [title, "±"]
        lines[1] += ["---:", "---:"]
    for record in known:
        cells = [*_format_setting(record, keys), record["model"]]
        for name in TITLES:
            deviation, decimals = record[f"{name}_std"], DECIMALS[name]
            cells.append(f"{record[name]:.{decimals}f}")
            cells.append("-" if deviation is None else f"{deviation:.{decimals}f}")
        lines.append(cells)
    return [format_markdown_lines(lines)]


def _format_differences(records: Sequence[Record]) -> str:
    keys = _list_keys(records, "model")
    header = [*keys, "model", "over", "measure", "difference", "±", "min to max"]
    lines = [[*header, "above 0", "below 0", "runs"]]
    lines.append(["---"] * (len(keys) + 3) + ["---:"] * 6)
    for record in records:
        deviation = record["difference_std"]
        low, high = (
            format_gain(record[f"difference_{end}"], 2) for end in ("min", "max")
        )
        lines.append(
            [*_format_setting(record, keys)]
            + [record[name] for name in ("model", "over", "measure")]
            + [format_gain(record["difference"], 2)]
            + ["-" if deviation is None else f"{deviation:.2f}", f"{low} to {high}"]
            + [str(record[name]) for name in ("num_above", "num_below", "num_runs")]
        )
    return format_markdown_lines(lines)


def _list_keys(records: Sequence[Record], first: str) -> list[str]:
    """The settings' keys, which stand before all other columns."""
    keys = list(records[0])
    return keys[: keys.index(first)]


def _format_setting(record: Record, keys: Sequence[str]) -> list[str]:
    return ["-" if record[key] is None else str(record[key]) for key in keys]
