"""The results table: table.csv, table.json and table.md, all in per cent."""

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iterinf.errors import UserError
from iterinf.report.rows import Comparison, Row
from iterinf.runtime.files import write_atomically

_LAST_COLUMNS = (
    "mean_iou",
    "global_accuracy",
    "gain",
    "gain_low",
    "gain_high",
    "step_size",
    "num_iterations",
)
TITLES = {  # of measures
    "boundary_f1": "boundary F1",
    "nll": "NLL",
    "ece": "ECE",
    "fragmentation": "fragmentation",
}
DECIMALS = {"boundary_f1": 1, "nll": 3, "ece": 1, "fragmentation": 2}
_PARTS = ("", "_gain", "_low", "_high")  # columns of each measure


def write_table(
    rows: Sequence[Row],
    classes: Sequence[str],
    directory: Path,
    notes: Sequence[str],
    provenance: Mapping[str, object],
    differences: Sequence[Mapping[str, object]] = (),
) -> None:
    """Writes table.csv, table.json and table.md.

    Columns: model, the classes, mean_iou, global_accuracy, gain, gain_low, gain_high
    (per cent), step_size, num_iterations; then m, m_gain, m_low and m_high for each
    measure m of `iterinf.evaluation.measures.MEASURES`, in a second table in table.md.
    Classes absent from truth and prediction, and the step size of the segmenter alone,
    are empty in the csv, null in the json and "-" in the md. The json has full
    precision, marks the rows that are controls, and alone has the `differences`.

    Raises:
      UserError: If writing fails.
    """
    records = [_make_record(row, classes) for row in rows]
    document = {
        "classes": classes,
        "rows": [
            record | {"is_control": row.is_control}
            for record, row in zip(records, rows, strict=True)
        ],
        "differences": differences,
        "notes": notes,
        "provenance": provenance,
    }
    texts = {
        "table.csv": _format_csv(records),
        "table.json": json.dumps(drop_nan(document), indent=2, allow_nan=False),
        "table.md": _format_markdown(rows, classes, notes, provenance),
    }
    write_atomically(
        {directory / name: f"{text}\n".encode() for name, text in texts.items()}
    )


def check_class_names(classes: Sequence[str]) -> None:
    """Raises UserError if a class is named like another column."""
    measures = {f"{name}{part}" for name in TITLES for part in _PARTS}
    clashes = {"model", *_LAST_COLUMNS, *measures} & set(classes)
    if clashes:
        raise UserError(
            f"class name {min(clashes)!r} is also a column of the results table; "
            "rename the class"
        )


def drop_nan(tree: Any) -> Any:
    """Replaces nan, which JSON lacks, by None."""
    if isinstance(tree, Mapping):
        return {key: drop_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [drop_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


def format_console_table(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Formats the rows for a terminal: the models, then their IoU per class.

    The second part refers to models by number, so that it stays narrow.
    """
    header = ["", "model", "mean IoU", "accuracy", "gain", "95%", "step", "iterations"]
    models = [[*header, *(TITLES[name] for name, _ in rows[0].measures)]]
    for number, row in enumerate(rows, start=1):
        mean_iou, accuracy, gain, low, high, *choice = _format_row(row)
        measures = [format_measure(*measure)[0] for measure in row.measures]
        cells = [mean_iou, accuracy, gain, f"[{low}, {high}]", *choice, *measures]
        models.append([str(number), row.model, *cells])
    ious = [["IoU", *(str(number) for number in range(1, len(rows) + 1))]]
    for index, name in enumerate(classes):
        ious.append([name, *(_format_number(row.class_iou[index]) for row in rows)])
    return f"{align(models, left=2)}\n\n{align(ious, left=1)}"


def _make_record(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    """Converts a row to a dict by column, with None for nan."""
    record: dict[str, object] = {"model": row.model}
    record |= dict(zip(classes, row.class_iou, strict=True))
    record |= {name: getattr(row, name) for name in _LAST_COLUMNS}
    for name, found in row.measures:
        record |= {f"{name}{_PARTS[i]}": value for i, value in enumerate(found)}
    return drop_nan(record)


def _format_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Formats the csv, with four decimals; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(records[0])
    for record in records:
        writer.writerow(
            f"{value:.4f}"
            if isinstance(value, float) and name != "step_size"
            else value
            for name, value in record.items()
        )
    return text.getvalue().rstrip("\n")


def _format_markdown(
    rows: Sequence[Row],
    classes: Sequence[str],
    notes: Sequence[str],
    provenance: Mapping[str, object],
) -> str:
    """Formats the table, its explanation, the notes and the provenance."""
    header = ["model", *classes, *_LAST_COLUMNS]
    lines = [header, ["---", *(["---:"] * (len(header) - 1))]]
    for row in rows:
        lines.append([row.model, *map(_format_number, row.class_iou)])
        lines[-1] += _format_row(row)
    paragraphs = [
        format_markdown_lines(lines),
        "All values are in per cent. `gain` is the difference in mean IoU from the "
        "first row, in percentage points, with its 95% paired interval `gain_low` to "
        "`gain_high` (bootstrap over blocks of images). The interval does not cover "
        "training seeds.",
        _describe_absent_classes(rows, classes),
        _format_measures(rows),
        "Boundary F1 is in per cent, with a tolerance of evaluation.boundary_tolerance "
        "times the image diagonal. NLL is the negative log-likelihood of the truth in "
        "nats per pixel, ECE the expected calibration error in per cent, fragmentation "
        "the number of connected regions in the prediction divided by that in the "
        "truth (1 is ideal). 95%: paired interval of the difference from the first "
        "row.",
        *notes,
        format_provenance(provenance),
    ]
    return "\n\n".join(paragraphs)


def _format_row(row: Row) -> list[str]:
    """Formats the columns `_LAST_COLUMNS`."""
    return [
        _format_number(row.mean_iou),
        _format_number(row.global_accuracy),
        *map(format_gain, (row.gain, row.gain_low, row.gain_high)),
        "-" if row.step_size is None else f"{row.step_size:g}",
        str(row.num_iterations),
    ]


def _format_measures(rows: Sequence[Row]) -> str:
    """Formats the table of measures."""
    lines = [["model"], ["---"]]
    for name, _ in rows[0].measures:
        lines[0] += [TITLES[name], "95% of difference"]
        lines[1] += ["---:", "---:"]
    for row in rows:
        cells = [format_measure(*measure) for measure in row.measures]
        lines.append([row.model, *itertools.chain(*cells)])
    return format_markdown_lines(lines)


def format_measure(name: str, found: Comparison) -> tuple[str, str]:
    """Formats a measure and the interval of its difference from the first row."""
    decimals = DECIMALS[name]
    low, high = (format_gain(x, decimals) for x in (found.low, found.high))
    interval = low if math.isnan(found.low) else f"{low} to {high}"
    return _format_number(found.value, decimals), interval


def format_markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Formats cells as a Markdown table, escaping vertical bars."""
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def _describe_absent_classes(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Names the classes excluded from the mean, and the rows concerned."""
    rule = "Classes absent from truth and prediction, excluded from the mean"
    absent = {
        name: [row.model for row in rows if math.isnan(row.class_iou[index])]
        for index, name in enumerate(classes)
    }
    found = [
        name if len(models) == len(rows) else f"{name} (in {'; '.join(models)} only)"
        for name, models in absent.items()
        if models
    ]
    return f"{rule}: {', '.join(found) or 'none'}."


def format_provenance(provenance: Mapping[str, object]) -> str:
    """Formats values as a Markdown list, each on one line."""
    return "\n".join(
        f"- {name}: `{' '.join(str(value).split())}`"
        for name, value in provenance.items()
    )


def _format_number(value: float, decimals: int = 1) -> str:
    """Formats a number; nan is "-"."""
    return "-" if math.isnan(value) else f"{value:z.{decimals}f}"


def format_gain(value: float, decimals: int = 1) -> str:
    """Formats percentage points with a sign; zero is 0.0, nan "-"."""
    if math.isnan(value):
        return "-"
    text = f"{value:+z.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def align(lines: Sequence[Sequence[str]], *, left: int) -> str:
    """Aligns columns; the first `left` columns are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
