"""Killed at any moment, an experiment resumes and ends the same."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from iterinf.experiment.stages import Experiment
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


def draw_moments():
    """Where the process gets a signal: function, at which of its calls, with what.

    Each is drawn within its stage; calls are those whose arguments hold the word.
    """
    draw = np.random.default_rng(0).integers
    kill, terminate, interrupt = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    return [
        # 4 steps of each training; a checkpoint ends in six renames.
        (kill, "tqdm.tqdm.update", draw(1, 5), ""),
        (kill, "os.rename", draw(1, 7), "/segmenter/checkpoints/4"),
        (terminate, "tqdm.tqdm.update", draw(1, 5), "training DAE(y_true)"),
        # 2 batches in a sweep; then 2 of the control.
        (kill, "iterinf.evaluation.sweep._advance_bar", draw(1, 3), ""),
        (interrupt, "tqdm.tqdm.update", draw(1, 5), "training DAE(y):"),
        (terminate, "iterinf.experiment.modes.evaluate", 1, "'dae_y'"),
        (kill, "os.replace", draw(1, 4), "/results/table"),
    ]


DRIVER = """
import importlib, os, sys
from iterinf import main

def send(signal, path, n, word):
    module, _, name = path.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    function, calls = getattr(owner, name), []
    def counted(*args, **kwargs):
        calls.extend([0] * (word in f"{args} {args[0]}"))
        if len(calls) == n:
            os.kill(os.getpid(), signal)
        return function(*args, **kwargs)
    setattr(owner, name, counted)

_, workdir, *moment = sys.argv
if moment:
    send(int(moment[0]), moment[1], int(moment[2]), moment[3])
sys.argv = ["main", "--config=tests/tiny.py", "--workdir=" + workdir]
main.main()
"""


def run_driver(workdir, cache, *moment):
    arguments = [sys.executable, "-c", DRIVER, workdir, *moment]
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def read_parameters(workdir):
    """Every array of the best checkpoints, as a run from Python reads them."""
    config = tiny.get_config()
    experiment = Experiment(config, workdir)
    models = [experiment.train_segmenter()]
    models += [experiment.train_refiner(name) for name in config.refiners]
    return jax.tree.leaves(models)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_the_same(finished, tmp_path):
    workdir, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(finished, workdir)
    cache = jax.config.jax_compilation_cache_dir or tmp_path / "cache"
    for number, *moment in draw_moments():
        done = run_driver(killed, cache, int(number), *moment)
        expected = {signal.SIGTERM: 0, signal.SIGINT: 130}.get(number, -number)
        assert done.returncode == expected, (moment, done.stderr)
        assert "Traceback" not in done.stderr
        if number != signal.SIGKILL:
            saved = number == signal.SIGTERM and "tqdm" in moment[0]
            last = f"{number.name}: {'saved' if saved else 'stopped'}"
            assert done.stdout.splitlines()[-1].startswith(last), (moment, done)
    done = run_driver(killed, cache)
    assert done.returncode == 0, done.stderr
    tables = [folder / "results" / "table.csv" for folder in (killed, workdir)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    found, expected = read_parameters(killed), read_parameters(workdir)
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)
