"""Validation chooses, test follows: what is done with a refiner once it is trained."""

import functools
import json
import time

import numpy as np

from iterinf.data import Split
from iterinf.evaluation import compute_mean_iou
from iterinf.files import read_arrays, write_arrays, write_json
from iterinf.prediction import count_predictions
from iterinf.selection import Counts, Selection, count_refinements, select
from iterinf.stages import Experiment


def choose(experiment: Experiment, name: str) -> Selection:
    """Chooses step size and iterations of a refiner on validation.

    Writes curve.npz and selection.json; where the latter is there, reads it.
    """
    folder = experiment.workdir / "refiners" / name
    if (folder / "selection.json").exists():
        content = json.loads((folder / "selection.json").read_text())
        return Selection(**content["refined"])
    grid = experiment.config.refiner[name].selection
    experiment.train_refiner(name)
    started = time.monotonic()
    count = functools.partial(_count, experiment, name, experiment.dataset.validation)
    counts = count(
        grid.step_sizes, grid.num_iterations, "sweep", count_stopped=grid.count_stopped
    )
    curve = compute_mean_iou(counts.refined.sum(axis=0))
    initial = float(compute_mean_iou(counts.initial.sum(axis=0)))
    damped = count(grid.damped_step_sizes, 1, "damped steps")
    damped_curve = compute_mean_iou(damped.refined.sum(axis=0))
    selection = select(curve, grid.step_sizes)
    write_arrays(
        folder / "curve.npz",
        mean_iou=curve,  # [step size, iteration], after 1.. iterations
        initial_mean_iou=np.asarray(initial),
        step_sizes=np.asarray(grid.step_sizes),
    )
    write_json(
        folder / "selection.json",
        {
            "refined": selection._asdict(),
            "damped": select(damped_curve, grid.damped_step_sizes)._asdict(),
            "initial_mean_iou": initial,
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    return selection


def evaluate_segmenter(experiment: Experiment) -> None:
    """Runs the plain network on the test split; writes segmenter/test.npz."""
    path = experiment.workdir / "segmenter" / "test.npz"
    if path.exists():
        return
    counts = count_predictions(
        experiment.segmenter,
        experiment.segmenter_variables,
        experiment.dataset.test.stack(),
        num_classes=experiment.dataset.num_classes,
        batch_size=experiment.config.evaluation.batch_size,
    )
    write_arrays(path, counts=counts)


def evaluate(experiment: Experiment, name: str) -> None:
    """Runs the test split once a choice, which is on disk by now; writes test.npz."""
    path = experiment.workdir / "refiners" / name / "test.npz"
    selection = choose(experiment, name)
    damped = json.loads(path.with_name("selection.json").read_text())["damped"]
    choice = np.array([*selection[:2], damped["step_size"]])
    if path.exists() and np.array_equal(read_arrays(path)["choice"], choice):
        return
    experiment.train_refiner(name)
    started = time.monotonic()
    count = functools.partial(_count, experiment, name, experiment.dataset.test)
    num_iterations = experiment.config.refiner[name].selection.num_iterations
    counts = count((selection.step_size,), num_iterations, "test")
    controls = count((1.0, damped["step_size"]), 1, "controls")
    write_arrays(
        path,
        choice=choice,  # step size, iterations, step size of the damped control
        initial=counts.initial,  # of its own segmenter, where it has one
        refined=counts.refined[:, 0, selection.num_iterations - 1],
        one_reconstruction=controls.refined[:, 0, 0],
        damped_step=controls.refined[:, 1, 0],
        mean_iou=compute_mean_iou(counts.refined[:, 0].sum(axis=0)),
        seconds=np.asarray(round(time.monotonic() - started, 1)),
    )


def _count(
    experiment: Experiment,
    name: str,
    split: Split,
    step_sizes: tuple[float, ...],
    num_iterations: int,
    title: str,
    *,
    count_stopped: bool = True,
) -> Counts:
    config = experiment.config
    return count_refinements(
        experiment.segmenter,
        experiment.create_refiner(name),
        experiment.train_refiner(name),
        split.stack(),
        step_sizes=step_sizes,
        num_iterations=num_iterations,
        num_classes=experiment.dataset.num_classes,
        batch_size=config.evaluation.batch_size,
        stop=config.refiner[name].selection.stop,
        count_stopped=count_stopped,
        title=f"{title} of {config.refiner[name].title}" if config.progress else "",
    )
