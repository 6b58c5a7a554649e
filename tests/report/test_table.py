"""What is written is what was measured, whole or not at all."""

import csv
import json
from pathlib import Path

import pytest

from iterinf.errors import UserError
from iterinf.report.rows import Row
from iterinf.report.table import (
    check_class_names,
    format_console_table,
    write_table,
)

CLASSES = ("sky", "fence")
PROVENANCE = {
    "config": "configs/quickstart.py",
    "seed": 0,
    "command": "python -m iterinf.main \\\n  --config=configs/quickstart.py",
}
NOTES = ["Iterating beats both controls."]
COLUMNS = [
    "model",
    "sky",
    "fence",
    "mean_iou",
    "global_accuracy",
    "gain",
    "gain_low",
    "gain_high",
    "step_size",
    "num_iterations",
]


def make_model(model: str, mean_iou: float, fence: float = 12.34567) -> Row:
    """A row with a mean of choice."""
    gain = mean_iou - 57.0
    return Row(model, (88.7, fence), mean_iou, 88.1, gain, gain - 1, gain + 1, 0.08, 17)


PLAIN = Row("FCN8", (88.7, 24.4), 57.0, 88.1, 0.0, 0.0, 0.0, None, 0)
REFINED = make_model("FCN8 + DAE(y)", 60.012345)


def read_csv(directory: Path) -> list[dict[str, str]]:
    """The rows by column."""
    with open(directory / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_markdown(directory: Path, rows: list[Row]) -> str:
    """Writes the table and reads its md."""
    write_table(rows, CLASSES, directory, NOTES, PROVENANCE)
    return (directory / "table.md").read_text()


def test_csv_round_trip(tmp_path: Path) -> None:
    write_table([PLAIN, REFINED], CLASSES, tmp_path / "results", NOTES, PROVENANCE)
    plain, refined = read_csv(tmp_path / "results")
    assert list(plain) == COLUMNS
    assert (plain["gain"], plain["step_size"], plain["num_iterations"]) == (
        "0.0000",
        "",
        "0",
    )
    assert refined["model"] == "FCN8 + DAE(y)"
    numbers = [float(refined[name]) for name in COLUMNS[1:]]
    expected = [*REFINED.class_iou, *REFINED[2:-2]]  # all that are numbers
    assert numbers == pytest.approx(expected, abs=5e-5)
    assert (refined["step_size"], refined["num_iterations"]) == ("0.08", "17")


def test_model_name_with_a_comma_stays_one_cell(tmp_path: Path) -> None:
    name = "FCN8 + DAE(y), one reconstruction"
    write_table([PLAIN, make_model(name, 59.0)], CLASSES, tmp_path, NOTES, PROVENANCE)
    assert read_csv(tmp_path)[1]["model"] == name


def test_json_has_full_precision(tmp_path: Path) -> None:
    control = REFINED._replace(is_control=True)
    write_table([PLAIN, control], CLASSES, tmp_path, NOTES, PROVENANCE)
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["classes"] == list(CLASSES)
    assert document["provenance"] == PROVENANCE
    assert list(document["rows"][1]) == [*COLUMNS, "is_control"]
    assert [row["is_control"] for row in document["rows"]] == [False, True]
    assert document["rows"][1]["mean_iou"] == REFINED.mean_iou
    assert document["rows"][0]["step_size"] is None


def test_markdown_rows_have_one_decimal(tmp_path: Path) -> None:
    lines = write_markdown(tmp_path, [PLAIN, REFINED]).splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert lines[2] == (
        "| FCN8 | 88.7 | 24.4 | 57.0 | 88.1 | 0.0 | 0.0 | 0.0 | - | 0 |"
    )
    assert lines[3] == (
        "| FCN8 + DAE(y) | 88.7 | 12.3 | 60.0 | 88.1 | +3.0 | +2.0 | +4.0 | 0.08 | 17 |"
    )


def test_small_loss_is_not_printed_as_minus_zero(tmp_path: Path) -> None:
    text = write_markdown(tmp_path, [PLAIN, make_model("DAE", 56.98)])
    assert "-0.0" not in text


def test_absent_class_is_blank_and_named(tmp_path: Path) -> None:
    rows = [PLAIN, make_model("FCN8 + DAE(y)", 88.7, fence=float("nan"))]
    text = write_markdown(tmp_path, rows)
    assert "| FCN8 + DAE(y) | 88.7 | - |" in text
    assert ": fence (in FCN8 + DAE(y) only)." in text
    assert read_csv(tmp_path)[1]["fence"] == ""
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["rows"][1]["fence"] is None
    assert ": fence.\n" in write_markdown(tmp_path, rows[1:])
    assert ": none.\n" in write_markdown(tmp_path, [PLAIN])


def test_markdown_prints_the_provenance(tmp_path: Path) -> None:
    text = write_markdown(tmp_path, [PLAIN])
    assert "- config: `configs/quickstart.py`\n- seed: `0`\n" in text
    assert "`python -m iterinf.main \\ --config=configs/quickstart.py`" in text


def test_notes_stand_in_markdown_and_json(tmp_path: Path) -> None:
    assert f"\n\n{NOTES[0]}\n\n- config" in write_markdown(tmp_path, [PLAIN])
    assert json.loads((tmp_path / "table.json").read_text())["notes"] == NOTES


def test_class_named_as_a_column_is_refused() -> None:
    with pytest.raises(UserError, match="'gain'"):
        check_class_names(("sky", "gain"))


def test_console_table() -> None:
    assert format_console_table([PLAIN, REFINED], CLASSES).splitlines() == [
        "   model          mean IoU  accuracy  gain           95%  step  iterations",
        "1  FCN8               57.0      88.1   0.0    [0.0, 0.0]     -           0",
        "2  FCN8 + DAE(y)      60.0      88.1  +3.0  [+2.0, +4.0]  0.08          17",
        "",
        "IoU       1     2",
        "sky    88.7  88.7",
        "fence  24.4  12.3",
    ]
