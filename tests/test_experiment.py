"""The stages end to end, interrupted and not, at tiny size."""

import csv
import json
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from iterinf.data.camvid import CLASSES
from iterinf.errors import UserError
from iterinf.experiment import run
from iterinf.stages import Experiment
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
ROWS = [
    "FCN8",
    "FCN8 + DAE(y_true), one reconstruction",
    "FCN8 + DAE(y_true), one damped step",
    "FCN8 + DAE(y_true)",
    "FCN8 + DAE(y), one reconstruction",
    "FCN8 + DAE(y), one damped step",
    "FCN8 + DAE(y)",
]


def read_table(workdir):
    with (workdir / "results" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def read_logs(workdir):
    return {path: path.read_text() for path in workdir.glob("**/metrics.jsonl")}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    run(tiny.get_config(), folder, "run", "the command")
    return folder


def test_leaves_its_results(workdir):
    rows = read_table(workdir)
    assert [row["model"] for row in rows] == ROWS
    columns = ["model", *CLASSES, "mean_iou", "global_accuracy", "gain", "gain_low"]
    columns += ["gain_high", "step_size", "num_iterations"]
    assert list(rows[0]) == columns
    for row in rows[1:]:
        gain = float(row["mean_iou"]) - float(rows[0]["mean_iou"])
        assert float(row["gain"]) == pytest.approx(gain, abs=0.011)
        assert float(row["gain_low"]) <= float(row["gain"]) <= float(row["gain_high"])
    folder = workdir / "refiners" / "dae_y"
    with np.load(folder / "curve.npz") as curve:
        assert curve["mean_iou"].shape == (2, 3)
        best = curve["mean_iou"].max()
    choice = json.loads((folder / "selection.json").read_text())["refined"]
    assert choice["mean_iou"] == best
    assert float(rows[-1]["step_size"]) == choice["step_size"]
    assert int(rows[-1]["num_iterations"]) == choice["num_iterations"]
    provenance = json.loads((workdir / "results" / "table.json").read_text())
    assert provenance["provenance"]["command"] == "the command"
    figures = {path.name for path in (workdir / "results" / "figures").iterdir()}
    assert figures == {
        "figure3.png",
        "figure4_dae_y.png",
        "figure4_dae_ytrue.png",
    }


def test_a_finished_run_is_not_run_again(workdir):
    logs, rows = read_logs(workdir), read_table(workdir)
    run(tiny.get_config(), workdir, "run", "again")
    assert read_logs(workdir) == logs
    assert read_table(workdir) == rows


def test_a_workdir_of_another_config_is_refused(workdir):
    config = tiny.get_config()
    config.segmenter.training.num_epochs = 3
    with pytest.raises(UserError, match="config.segmenter.training.num_epochs = 2"):
        run(config, workdir, "run", "")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("refiners", (), "config.refiners is empty"),
        ("refiners", ("dea_y",), "unknown 'dea_y'; known: dae_y, dae_ytrue"),
    ],
)
def test_bad_refiners_are_refused(tmp_path, key, value, message):
    config = tiny.get_config()
    config[key] = value
    with pytest.raises(UserError, match=message):
        run(config, tmp_path, "run", "")


# Where the process kills itself: module, function, at which of its calls.
KILLS = [
    ("iterinf.data.loader", "_make_batch", 3),  # in the segmenter's training
    ("os", "rename", 9),  # in the write of its second checkpoint
    ("iterinf.training", "_advance", 3),  # in a refiner's training
    ("iterinf.selection", "_advance_bar", 1),  # in a sweep
    ("iterinf.stages", "write_json", 3),  # after a sweep, its choice not yet kept
]
DRIVER = """
import importlib, os, pathlib, signal, sys
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
from iterinf.experiment import run
from tests import tiny

def kill_at(module, name, n):
    module = importlib.import_module(module)
    function, calls = getattr(module, name), []
    def counted(*args, **kwargs):
        calls.append(0)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(module, name, counted)

if len(sys.argv) > 3:
    kill_at(sys.argv[3], sys.argv[4], int(sys.argv[5]))
run(tiny.get_config(), pathlib.Path(sys.argv[1]), "run", "")
"""


def run_driver(workdir, cache, *kill):
    arguments = [sys.executable, "-c", DRIVER, workdir, cache, *kill]
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def read_parameters(workdir):
    """Every array of the best checkpoints, as a run from Python reads them."""
    config = tiny.get_config()
    experiment = Experiment(config, workdir)
    models = [experiment.segmenter_variables]
    models += [experiment.train_refiner(name) for name in config.refiners]
    return jax.tree.leaves(models)


@pytest.mark.slow
def test_killed_five_times_it_ends_the_same(workdir, tmp_path):
    cache = tmp_path / "cache"
    for kill in KILLS:
        done = run_driver(tmp_path / "killed", cache, *kill)
        assert done.returncode == -signal.SIGKILL, (kill, done.stderr)
    done = run_driver(tmp_path / "killed", cache)
    assert done.returncode == 0, done.stderr
    assert read_table(tmp_path / "killed") == read_table(workdir)
    found, expected = read_parameters(tmp_path / "killed"), read_parameters(workdir)
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)
