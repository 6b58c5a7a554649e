"""Many runs of a config: what a grid may say, which runs begin, and their table."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from iterinf.errors import UserError
from launch import grid as launch_grid
from launch import runs as launch_runs
from launch.grid import SLURM, Run, _launch, expand_grid, make_command, run_grid
from launch.grid_table import summarise, summarise_differences, write_grid_table
from launch.runs import UNFINISHED

ROOT = pathlib.Path(__file__).parents[2]
SIGMA = "refiner.dae_y.objective.sigma"


def write_config(folder, *lines):
    path = folder / "mine.py"
    body = "".join(f"    {line}\n" for line in lines)
    head = "from tests import tiny\n\n\ndef get_config():\n"
    path.write_text(f"{head}    return tiny.get_config()\n\n\ndef grid(add):\n{body}")
    return path


def test_a_grid_expands_in_its_order(tmp_path):
    path = write_config(
        tmp_path,
        "for sigma in (1, 0.25):",
        "    for seed in range(2):",
        f"        add(seed=seed, **{{'{SIGMA}': sigma}})",
        "add(refiners=['dae_y', 'dense_crf'])",
        "add(refiner={'dae_y': {'title': 'a/b'}})",
        "add()",
    )
    runs = expand_grid(path)
    assert [run.name for run in runs] == [
        f"seed=0,{SIGMA}=1.0",
        f"seed=1,{SIGMA}=1.0",
        f"seed=0,{SIGMA}=0.25",
        f"seed=1,{SIGMA}=0.25",
        "refiners=dae_y+dense_crf",
        "refiner.dae_y.title=a_b",
        "unchanged",
    ]
    assert runs[2].setting == {"seed": 0, SIGMA: 0.25}
    assert runs[2].flags == ["--config.seed=0", f"--config.{SIGMA}=0.25"]
    assert runs[4].setting == {"refiners": ("dae_y", "dense_crf")}
    segmenters = [run.segmenter for run in runs]
    assert {i for i in range(7) if segmenters[i] != segmenters[0]} == {1, 3}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("add(sede=1)", '"sede" does not exist.*"seed"'),
        ("add(**{'refiner.dea_y.title': 'x'})", '"refiner.dea_y" was not found'),
        ("add(seed='one')", "seed.*one"),
        ("add(**{'segmenter': 1})", "segmenter"),
        ("add(**{'segmenter.training.crop_size': None})", "no flag can set"),
        ("add(seed=-1)", "config.seed is -1"),
        ("add(seed=1), add(seed=1)", "two runs seed=1"),
        ("pass", "is empty"),
        ("1 / 0", "division by zero"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, line, words):
    path = write_config(tmp_path, line)
    with pytest.raises(UserError, match=f"the grid of .*mine.py.*{words}"):
        expand_grid(path)


def test_a_config_without_a_grid():
    with pytest.raises(UserError, match=r"tiny.py defines no grid\(add\)"):
        expand_grid(ROOT / "tests" / "tiny.py")


STUB = """
import os, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with (workdir.parent / "began").open("a") as file:
    file.write(workdir.name + "\\n")
if "fail" in workdir.name:
    sys.exit("stub: it fails")
if "wait" in workdir.name:
    def end(*_):
        (workdir / "told").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    (workdir / "ready").touch()
    time.sleep(60)
(workdir / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
(workdir / "results").mkdir()
(workdir / "results" / "table.json").touch()
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Runs that take no time."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(launch_runs, "MAIN", (sys.executable, str(path)))


def make_runs(*names):
    return [Run(name, {}, name) for name in names]


def read_began(folder):
    return (folder / "began").read_text().split()


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("jobs", [1, 3])
def test_others_run_where_one_fails_and_finished_ones_are_skipped(
    tmp_path, capfd, jobs
):
    runs = make_runs("a", "fail", "b")
    failed, unfinished = run_grid("x.py", runs, tmp_path, [], jobs=jobs)
    assert (failed, unfinished) == (["fail"], [])
    assert sorted(read_began(tmp_path)) == ["a", "b", "fail"]
    message = "launch.grid: fail: x.py ended with status 1"
    assert message in capfd.readouterr().err
    run_grid("x.py", runs, tmp_path, [], jobs=jobs)
    assert sorted(read_began(tmp_path)) == ["a", "b", "fail", "fail"]
    if jobs > 1:
        log = tmp_path / "fail" / "log.txt"
        assert log.read_text() == "stub: it fails\n" * 2


@pytest.mark.usefixtures("stub")
def test_runs_at_once_share_out_the_devices(tmp_path):
    names = [f"run{i}" for i in range(5)]
    runs, devices = make_runs(*names), ["3", "5"]
    assert run_grid("x.py", runs, tmp_path, [], jobs=2, devices=devices) == ([], [])
    used = [(tmp_path / name / "device").read_text() for name in names]
    assert sorted(set(used)) == devices


@pytest.mark.usefixtures("stub")
def test_a_signal_is_handed_on_and_nothing_begins_after_it(tmp_path):
    waiting = ["wait0", "wait1"]

    def terminate():
        deadline = time.monotonic() + 30
        while not all((tmp_path / name / "ready").exists() for name in waiting):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    runs = make_runs(*waiting, "c")
    failed, unfinished = run_grid("x.py", runs, tmp_path, [], jobs=2)
    thread.join()
    assert (failed, sorted(unfinished)) == ([], ["c", *waiting])
    assert sorted(read_began(tmp_path)) == waiting
    assert all((tmp_path / name / "told").exists() for name in waiting)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("stub")
def test_a_finished_run_gives_its_segmenter(tmp_path):
    done = tmp_path / "done"
    (done / "results").mkdir(parents=True)
    (done / "segmenter").mkdir()
    for name in ("results/table.json", "config.json", "data.json", "runs.jsonl"):
        (done / name).touch()
    (done / "segmenter" / "summary.json").write_text("kept")
    runs = [Run("done", {}, "one"), Run("same", {}, "one"), Run("other", {}, "two")]
    run_grid("x.py", runs, tmp_path, [], jobs=1)
    assert read_began(tmp_path) == ["same", "other"]
    assert (tmp_path / "same" / "segmenter" / "summary.json").read_text() == "kept"
    assert not (tmp_path / "other" / "segmenter").exists()


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("jobs", [1, 2])
def test_others_run_where_one_cannot_begin(tmp_path, capsys, jobs):
    """No segmenter to copy for one; a file is where the workdir of another must be."""
    (tmp_path / "done" / "results").mkdir(parents=True)
    (tmp_path / "done" / "results" / "table.json").touch()
    (tmp_path / "file").touch()
    runs = [Run("done", {}, "one"), Run("same", {}, "one"), *make_runs("file", "a")]
    failed, unfinished = run_grid("x.py", runs, tmp_path, [], jobs=jobs)
    assert (sorted(failed), unfinished) == (["file", "same"], [])
    assert read_began(tmp_path) == ["a"]
    assert f"same: cannot copy {tmp_path}/done to {tmp_path}/same: No such file" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / ".same.tmp").exists()


def test_commands_under_slurm(tmp_path):
    run = Run("seed=1", {"seed": 1}, "")
    command = make_command("x.py", run, tmp_path, ["--alsologtostderr"], sbatch=["-G1"])
    assert command == [
        *("sbatch", "--job-name=seed=1", "-G1", str(SLURM)),
        *("--config=x.py", f"--workdir={tmp_path}/seed=1"),
        *("--alsologtostderr", "--config.seed=1"),
    ]


def make_table(plain, gain, *models, **more):
    rows = [{"model": "FCN8", "mean_iou": plain, "gain": 0.0}]
    rows += [{"model": m, "mean_iou": plain + gain, "gain": gain} for m in models]
    rows = [row | more for row in rows]
    return {"rows": rows, "provenance": {"commit": "abc", "command": "python"}}


def test_the_spread_is_over_seeds_at_each_other_setting():
    a, b, none = ({"mean_iou_on_validation": value} for value in (41.0, 42.5, None))
    tables = [
        ({"seed": 0, SIGMA: 0.1}, make_table(40.0, 1.0, "DAE", **a)),
        ({"seed": 0, SIGMA: 0.2}, make_table(40.0, 5.0, "DAE", **none)),
        ({"seed": 1, SIGMA: 0.1}, make_table(42.0, 2.0, "DAE", "CRF", **a)),
        ({SIGMA: 0.1, "seed": 2}, make_table(44.0, 6.0, "DAE", **b)),
        ({"dataset.options.seed": 9}, make_table(50.0, 0.0, **b)),
    ]
    rows = {(row[SIGMA], row["model"]): row for row in summarise(tables)}
    assert list(rows) == [
        *((0.1, "FCN8"), (0.1, "DAE"), (0.1, "CRF")),
        *((0.2, "FCN8"), (0.2, "DAE"), (None, "FCN8")),
    ]
    known = {k: v for k, v in rows[0.1, "FCN8"].items() if v is not None}
    assert known == {
        **{SIGMA: 0.1, "model": "FCN8", "num_runs": 3},
        **{"mean_iou_on_validation": 41.5, "mean_iou": 42.0, "mean_iou_std": 2.0},
        **{"mean_iou_min": 40.0, "mean_iou_max": 44.0},
        **{"gain": 0.0, "gain_std": 0.0, "gain_min": 0.0, "gain_max": 0.0},
    }
    gains = [rows[0.1, "DAE"][f"gain{end}"] for end in ("", "_std", "_min", "_max")]
    assert gains == pytest.approx([3.0, 7**0.5, 1.0, 6.0])
    assert rows[0.1, "CRF"]["num_runs"] == 1
    assert rows[0.1, "CRF"]["gain_std"] is None
    assert rows[0.2, "DAE"]["mean_iou"] == 45.0
    assert rows[0.2, "DAE"]["mean_iou_on_validation"] is None


def test_measures_and_differences_are_gathered_over_seeds():
    """Mean and spread; and in how many runs an interval leaves out zero."""
    tables = []
    for seed, (gain, half) in enumerate([(1.0, 0.5), (3.0, 4.0), (-1.0, 0.2)]):
        table = make_table(40.0, gain, "DAE", mean_iou_on_validation=40.0)
        for row in table["rows"]:
            row |= {"boundary_f1": 50.0 + gain, "nll": 0.5, "ece": 3.0}
            row["fragmentation"] = None if seed == 2 else 1.5
        interval = [gain, gain - half, gain + half]
        nothing = [None, None, None]
        table["differences"] = [
            {"model": "DAE", "over": "one", "mean IoU": interval, "NLL": nothing}
        ]
        tables.append(({"seed": seed}, table))
    _, row = summarise(tables)
    assert row["boundary_f1"] == pytest.approx(51.0)
    assert row["boundary_f1_std"] == pytest.approx(2.0)
    assert row["fragmentation"] is None  # not known of all runs
    assert summarise_differences(tables) == [
        {
            **{"model": "DAE", "over": "one", "measure": "mean IoU", "num_runs": 3},
            **{"difference": 1.0, "difference_std": 2.0},
            **{"difference_min": -1.0, "difference_max": 3.0},
            **{"num_above": 1, "num_below": 1},
        }
    ]


def test_the_table_is_written_of_what_is_finished(tmp_path, capsys):
    runs = [(tmp_path / f"seed={seed}", {"seed": seed}) for seed in range(3)]
    write_grid_table(runs, tmp_path)
    assert not (tmp_path / "table.md").exists()
    assert "no run is finished yet" in capsys.readouterr().out
    config = {"segmenter": {"title": "FCN8"}, "refiners": ["dae"]}
    config |= {"refiner": {"dae": {"title": "DAE(y|h)"}}}
    title = "FCN8 + DAE(y|h)"
    for (workdir, _), gain in zip(runs[:2], (1.0, 2.0), strict=True):
        for path, content in {
            "results/table.json": make_table(40.0, gain, title, f"{title}, damped"),
            "config.json": config,
            "segmenter/summary.json": {"mean_iou_on_validation": 0.5},
            "refiners/dae/selection.json": {"refined": {"mean_iou": 0.5 + gain / 10}},
        }.items():
            (workdir / path).parent.mkdir(parents=True, exist_ok=True)
            (workdir / path).write_text(json.dumps(content))
    write_grid_table(runs, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    test = "41.5 | 0.7 | 41.0 to 42.0 | +1.5 | 0.7 | +1.0 to +2.0 |"
    assert lines[2].startswith("| FCN8 | 2 | 50.0 | 40.0 |")
    assert lines[3] == f"| FCN8 + DAE(y\\|h) | 2 | 65.0 | {test}"
    assert lines[4] == f"| FCN8 + DAE(y\\|h), damped | 2 | - | {test}"
    assert "Not finished: seed=2." in lines
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["unfinished"] == ["seed=2"]
    assert document["runs"]["seed=1"] == {"commit": "abc", "command": "python"}
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["gain_std"]) == document["rows"][1]["gain_std"]


def launch(workdir, config, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "-m", "launch.grid"),
            *(f"--config={config}", f"--workdir={workdir}", *map(str, arguments)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_values_of_all_kinds_reach_the_run_after_one_that_fails(tmp_path):
    setting = {
        "seed": 3,
        SIGMA: 1e-5,
        "progress": False,
        "dtype": "bfloat16",
        "refiners": ("dae_y",),
        "refiner.dae_y.title": "a 'b'",
        "segmenter.training.crop_size": (16, 16),
        "refiner.dae_y.selection.step_sizes": (0.1, 1.0),
        "evaluation.sweep_batch_size": 3,
        "evaluation.sweep_dtype": None,
        "loader.num_threads": 2,
    }
    wrong = "add(**{'dataset.name': 'camvids'})"
    path = write_config(tmp_path, wrong, f"add(**{setting})")
    flags = ["--", "--mode=check_data", "--config.trace_steps=2"]
    done = launch(tmp_path / "runs", path, *flags)
    assert done.returncode == 1 != UNFINISHED
    assert "iterinf: unknown data set 'camvids'" in done.stderr
    assert "failed: dataset.name=camvids; the same command resumes" in done.stdout, done
    _, run = expand_grid(path)
    assert run.setting == setting
    assert len(run.name) == 200
    config = json.loads((tmp_path / "runs" / run.name / "config.json").read_text())
    assert config["trace_steps"] == 2
    for key, value in setting.items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices=0,1", "--jobs=0"], "--devices runs a job on each GPU"),
        (["--devices=0,1", "--slurm"], "--devices runs a job on each GPU"),
        (["--slurm", "--", "--mode=sweep"], "--slurm queues a job again"),
        (["--slurm", "--", "-mode", "sweep"], "--slurm queues a job again"),
    ],
)
def test_flags_that_cannot_go_together(tmp_path, flags, message):
    path = write_config(tmp_path, "add(seed=1)")
    with flagsaver.flagsaver():
        _, *rest = absl_flags.FLAGS(["grid", *flags])
        with pytest.raises(UserError, match=message):
            _launch(str(path), tmp_path / "runs", ["grid", *rest])
    assert not (tmp_path / "runs").exists()


def test_a_segmenter_is_taken_over_before_a_job_is_submitted(tmp_path, monkeypatch):
    path = write_config(tmp_path, "add(seed=1)", "add(seed=1, refiners=['dae_y'])")
    done, same = (tmp_path / run.name for run in expand_grid(path))
    for name in ("results/table.json", "segmenter/summary.json"):
        (done / name).parent.mkdir(parents=True)
        (done / name).touch()
    for name in ("config.json", "data.json", "runs.jsonl"):
        (done / name).touch()
    submitted = []

    def submit(command, *, dry_run):
        submitted.append((command[0], dry_run, (same / "segmenter").exists()))

    monkeypatch.setattr(launch_grid, "_submit", submit)
    for flags in (["--slurm", "--dry_run"], ["--slurm"]):
        with flagsaver.flagsaver():
            absl_flags.FLAGS(["grid", *flags])
            assert _launch(str(path), tmp_path, ["grid"]) == 0
    assert submitted == [("sbatch", True, False), ("sbatch", False, True)]


def test_what_is_to_run_is_printed_or_refused(tmp_path):
    path = write_config(tmp_path, "add(seed=1), add(seed=2)")
    done = launch(tmp_path / "runs", path, "--slurm", "--dry_run")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["sbatch", "--job-name=seed=1"],
        ["sbatch", "--job-name=seed=2"],
    ]
    assert not (tmp_path / "runs").exists()
    done = launch(tmp_path / "runs", path, "--", "--config.seed=3")
    assert done.returncode == 1
    assert done.stderr.startswith("launch.grid: --config.seed=3 would change what")
