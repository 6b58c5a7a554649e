"""The launcher of Table 1: stages that resume, and the paper's numbers beside ours."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest

from iterinf.errors import UserError
from iterinf.experiment.modes import run
from launch.runs import (
    UNFINISHED,
    copy_segmenter,
    describe_segmenter,
    read_config_file,
)
from launch.table1 import (
    PAPER,
    Block,
    combine_tables,
    run_apart,
    split_overrides,
    write_combined_table,
)
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


def write_table(path, *rows):
    """A table.json of mean IoU and gain by model."""
    path.parent.mkdir(parents=True)
    rows = [
        {
            "model": model,
            "is_control": "reconstruction" in model,
            "mean_iou": iou,
            "gain": gain,
            "gain_low": gain - 1,
            "gain_high": gain + 1,
        }
        for model, iou, gain in rows
    ]
    path.write_text(json.dumps({"rows": rows}))
    return path


def test_rows_stand_beside_the_papers(tmp_path):
    tables = {
        "a": write_table(
            tmp_path / "a" / "table.json",
            ("FCN8", 50.0, 0.0),
            ("FCN8 + DAE(y), one reconstruction", 51.0, 1.0),
            ("FCN8 + DAE(y)", 53.5, 3.5),
        ),
        "b": write_table(
            tmp_path / "b" / "table.json",
            ("FCN8", 49.0, 0.0),
            ("FCN8 + new", 58.0, 2.0),
        ),
    }
    rows = combine_tables(tables, PAPER)
    by_name = {row["model"]: row for row in rows}
    assert len(rows) == 11 + 2
    first = [(row["model"], row["config"], row["ours"]) for row in rows[:3]]
    assert first == [
        ("FCN8", "a", 50.0),
        ("FCN8", "b", 49.0),
        ("FCN8 + CRF", None, None),
    ]
    assert by_name["FCN8 + DAE(y)"] == {
        "model": "FCN8 + DAE(y)",
        "config": "a",
        "paper": 60.0,
        "ours": 53.5,
        "difference": -6.5,
        "gain": 3.5,
        "gain_low": 2.5,
        "gain_high": 4.5,
    }
    assert by_name["FCN8 + CRF"]["paper"] == 58.2
    assert by_name["FCN8 + CRF"]["ours"] is None
    assert rows[-1]["model"] == "FCN8 + new"
    assert (rows[-1]["paper"], rows[-1]["difference"]) == (None, None)


def test_the_combined_table_is_written(tmp_path):
    tables = {"a": write_table(tmp_path / "a" / "table.json", ("FCN8", 50.04, 0.0))}
    write_combined_table(combine_tables(tables, PAPER), tmp_path)
    lines = (tmp_path / "table1.md").read_text().splitlines()
    assert lines[0].startswith("| model | config | paper | ours | difference | gain |")
    assert lines[2] == "| FCN8 | a | 57.0 | 50.0 | -7.0 | 0.0 | -1.0 | 1.0 |"
    assert lines[3] == "| FCN8 + CRF | - | 58.2 | - | - | - | - | - |"
    assert json.loads((tmp_path / "table1.json").read_text())[0]["ours"] == 50.04


def launch(workdir, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "-m", "launch.table1"),
            *("--configs=tests/tiny.py", f"--workdir={workdir}", *arguments),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_out_of_time_it_saves_and_goes_on_in_parts(finished, tmp_path):
    done = launch(tmp_path, "--minutes=0.08")
    assert done.returncode == UNFINISHED, done.stderr
    assert "unfinished: tiny; the same command resumes" in done.stdout
    assert not (tmp_path / "tiny" / "results").exists()
    config = tiny.get_config()
    config.refiners = ("dae_y",)
    run(config, tmp_path / "tiny", "train_refiner", "")
    log = tmp_path / "tiny" / "refiners" / "dae_y" / "metrics.jsonl"
    before = log.read_text()
    done = launch(
        tmp_path, "--jobs=2", "--", "--config.refiners=('dae_ytrue', 'dae_y')"
    )
    assert done.returncode == 0, done.stderr
    rows = {
        row["model"]: row for row in json.loads((tmp_path / "table1.json").read_text())
    }
    table, whole = (
        json.loads((workdir / "results" / "table.json").read_text())
        for workdir in (tmp_path / "tiny", finished)
    )
    assert table["rows"] == whole["rows"]
    assert log.read_text() == before  # begun in the whole, gone on with in its part
    assert (tmp_path / "tiny.parts" / "dae_y" / "log.txt").exists()
    assert rows["FCN8"]["ours"] == table["rows"][0]["mean_iou"]
    assert rows["FCN8 + DAE(y)"]["gain"] == table["rows"][-1]["gain"]
    _go_on_with_its_segmenter(tmp_path / "tiny", tmp_path / "other")


def _go_on_with_its_segmenter(source, target):
    """Another experiment on a copy trains its refiner alone."""
    config = tiny.get_config()
    config.refiners = ("dae_ytrue",)
    config.refiner.dae_ytrue.update(title="other", objective={"sigma": 0.2})
    copy_segmenter(source, target)
    run(config, target, "train_refiner", "")
    logs = [folder / "segmenter" / "metrics.jsonl" for folder in (source, target)]
    assert logs[0].read_text() == logs[1].read_text()
    epochs = (target / "refiners/dae_ytrue/metrics.jsonl").read_text().splitlines()
    assert len(epochs) == 2


class Processes:
    """Instead of processes: writes what they would, but nothing for `broken`."""

    jobs = 2

    def __init__(self, broken):
        self.broken = broken
        self.runs = []

    def run(self, block, workdir, *, refiners, mode="run", prepare=None):
        self.runs.append((mode, refiners))
        if prepare:
            prepare()
        if mode == "train_segmenter":
            for name in ("config.json", "data.json", "runs.jsonl"):
                write(workdir / name)
            write(workdir / "segmenter" / "summary.json")
        elif mode == "sweep":
            write(workdir / "refiners" / refiners[0] / "checkpoints")
            if refiners[0] == self.broken:
                return False
            write(workdir / "refiners" / refiners[0] / "selection.json")
        return True


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def test_a_refiner_that_is_not_finished_holds_no_other_up(tmp_path):
    block = Block(pathlib.Path("x.py"), tmp_path / "x", "", ("a", "b", "c"))
    first, second = Processes("b"), Processes(None)
    assert not run_apart(first, block)
    assert first.runs[0] == ("train_segmenter", ("a", "b", "c"))
    assert sorted(first.runs[1:4]) == [("sweep", (name,)) for name in "abc"]
    assert first.runs[4:] == [("run", ("a", "c"))]
    assert not (tmp_path / "x.parts" / "a" / "segmenter").exists()
    assert (tmp_path / "x.parts" / "b" / "refiners" / "b" / "checkpoints").exists()
    assert run_apart(second, block)
    assert second.runs == [("sweep", ("b",)), ("run", ("a", "b", "c"))]
    found = {path.parent.name for path in tmp_path.glob("x/refiners/*/selection.json")}
    assert found == {"a", "b", "c"}


def test_a_refiner_that_follows_another_waits_for_it(tmp_path):
    refiners = ("a", "b_after_a", "c_after_b", "b")
    follows = {"b_after_a": "a", "c_after_b": "b"}
    block = Block(pathlib.Path("x.py"), tmp_path / "x", "", refiners, follows)
    first, second = Processes("b"), Processes(None)
    assert not run_apart(first, block)
    assert sorted(first.runs[1:3]) == [("sweep", ("a",)), ("sweep", ("b",))]
    assert first.runs[3:] == [("run", ("a", "b_after_a"))]
    assert run_apart(second, block)
    assert second.runs == [("sweep", ("b",)), ("run", refiners)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--x=1"], (["--x=1"], ())),
        (["--config.refiners=a", "--x=1"], (["--x=1"], ("a",))),
        (["--config.refiners=('a', 'b')"], ([], ("a", "b"))),
    ],
)
def test_refiners_are_read_as_the_main_program_does(flags, expected):
    assert split_overrides(flags) == expected


def test_refiners_that_are_no_tuple_are_named():
    with pytest.raises(UserError, match=r"--config.refiners=\('a',: expected a tu"):
        split_overrides(["--config.refiners=('a',"])


@pytest.mark.slow
def test_a_config_that_fails_ends_it(tmp_path):
    done = launch(tmp_path, "--", "--config.refiners=('dea_y',)")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("iterinf: config.refiners")
    assert "'dea_y'" in lines[0]
    assert lines[-1] == "launch.table1: tests/tiny.py ended with status 1"


def test_ablations_share_the_segmenter_of_the_config_that_they_change():
    names = ("camvid_fcn8", "ablation_transposed", "ablation_image", "released_2017")
    first, *others, released = (
        describe_segmenter(
            read_config_file(ROOT / "configs" / f"{name}.py")["get_config"]()
        )
        for name in names
    )
    assert all(other == first for other in others)
    assert first != released
    assert '"seed": 0' in first


@pytest.mark.parametrize("text", ["def get_config(:", "x = 1", "import nothing_there"])
def test_a_file_that_is_no_config_is_named(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match="cannot read a config from .*mine.py"):
        read_config_file(path)


def test_titles_of_configs_do_not_meet_in_one_table():
    """But for plain networks, and for schedules of one experiment."""
    titles = []
    for path in sorted((ROOT / "configs").glob("[ar][be]*_*.py")):
        config = runpy.run_path(str(path))["get_config"]()
        assert config.segmenter.init_from == ""
        titles += [
            f"{config.segmenter.title} + {config.refiner[name].title}"
            for name in config.refiners
        ]
    assert len(set(titles)) == len(titles) > 10
    assert not {"FCN8 + DAE(y)", "FC-DenseNet103 + DAE(y)"} & set(titles)


def test_a_finished_segmenter_is_taken_over_once(tmp_path):
    source, target = tmp_path / "first", tmp_path / "second"
    for name in ("segmenter/summary.json", "refiners/dae_y/x", "config.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "data.json").write_text("data")
    (source / "runs.jsonl").write_text("runs")
    copy_segmenter(source, target)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    expected = ["config.json", "data.json", "runs.jsonl"]
    expected += ["segmenter", "segmenter/summary.json"]
    assert found == expected
    (source / "config.json").write_text("another")
    copy_segmenter(source, target)
    assert (target / "config.json").read_text() == "config.json"
