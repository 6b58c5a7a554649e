"""The stages of an experiment, in order; each goes on from what the workdir holds."""

import functools
import json
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iterinf.checkpoints import has_checkpoint
from iterinf.data import Dataset
from iterinf.errors import UserError
from iterinf.files import read_arrays, read_lines
from iterinf.prediction import predict_labels
from iterinf.protocol import choose, evaluate
from iterinf.provenance import describe_runs, log_run
from iterinf.report.results import (
    RefinerResult,
    compare_to_controls,
    make_rows,
    write_results,
)
from iterinf.report.table import check_class_names
from iterinf.stages import Experiment

MODES = (
    "run",
    "check_data",
    "train_segmenter",
    "train_refiner",
    "sweep",
    "evaluate",
    "report",
)


def run(config: ConfigDict, workdir: pathlib.Path, mode: str, command: str) -> None:
    """Runs one stage, or all of them.

    Args:
      config: as of configs/base.py.
      workdir: where results go, and where an interrupted run goes on.
      mode: one of MODES. A stage runs those before it if their results are missing,
        but for `report`, which draws on what is there.
      command: what the user typed, for the report.

    Raises:
      UserError: whatever the user can mend.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    experiment = Experiment(config, workdir)
    check_class_names(experiment.dataset.classes)
    if mode == "check_data":
        experiment.check_data()
        print(_describe_dataset(experiment.dataset))
        return
    experiment.check_same_data()
    if mode != "report":
        log_run(workdir, command)
        _ = experiment.segmenter_variables
        for stage in _list_refiner_stages(experiment, mode):
            for name in config.refiners:
                stage(name)
    if mode in ("run", "report"):
        report(experiment)


def _list_refiner_stages(
    experiment: Experiment, mode: str
) -> list[Callable[[str], object]]:
    """What is done with every refiner: no test image before all choices are made."""
    choice = functools.partial(choose, experiment)
    stages: dict[str, list[Callable[[str], object]]] = {
        "train_segmenter": [],
        "train_refiner": [experiment.train_refiner],
        "sweep": [choice],
        "evaluate": [choice, functools.partial(evaluate, experiment)],
    }
    return stages["evaluate" if mode == "run" else mode]


def _describe_dataset(dataset: Dataset) -> str:
    sizes = [len(s) for s in (dataset.train, dataset.validation, dataset.test)]
    return (
        f"{dataset.name}: {sizes[0]} training, {sizes[1]} validation, {sizes[2]} test "
        f"images, {dataset.num_classes} classes: nothing wrong"
    )


def report(experiment: Experiment) -> None:
    """Writes results/ from what the other stages left.

    Raises:
      UserError: if a refiner has no result yet.
    """
    config, workdir = experiment.config, experiment.workdir
    refiners = [_read_result(experiment, name) for name in config.refiners]
    blocks = experiment.dataset.test.blocks
    num_resamples = config.evaluation.num_resamples
    write_results(
        workdir / "results",
        experiment.dataset,
        make_rows(config.segmenter.title, refiners, blocks, num_resamples),
        refiners,
        functools.partial(_predict_test, experiment, refiners),
        compare_to_controls(refiners, blocks, num_resamples),
        {"seed": config.seed, **describe_runs(workdir)}
        | _describe_training(experiment),
    )


def _read_result(experiment: Experiment, name: str) -> RefinerResult:
    folder = experiment.workdir / "refiners" / name
    for file in ("selection.json", "curve.npz", "test.npz"):
        if not (folder / file).exists():
            raise UserError(f"there is no {folder / file}; run --mode=evaluate first")
    for network in (experiment.workdir / "segmenter", folder):
        if not has_checkpoint(network):
            raise UserError(
                f"there is no checkpoint in {network} to draw Figure 3 with"
            )
    selection = json.loads((folder / "selection.json").read_text())
    title = (
        f"{experiment.config.segmenter.title} + {experiment.config.refiner[name].title}"
    )
    return RefinerResult(
        name=name,
        title=title,
        step_size=selection["refined"]["step_size"],
        num_iterations=selection["refined"]["num_iterations"],
        damped_step_size=selection["damped"]["step_size"],
        folder=folder,
    )


def _predict_test(
    experiment: Experiment, refiners: list[RefinerResult], indices: list[int]
) -> dict[str, np.ndarray]:
    """Label maps of some test images, by row title, the segmenter's first."""
    images, _ = experiment.dataset.test.stack(indices)
    predictions: dict[str, np.ndarray] = {}
    for refiner in refiners:
        initial, refined = predict_labels(
            experiment.segmenter,
            experiment.create_refiner(refiner.name),
            experiment.segmenter_variables,
            experiment.train_refiner(refiner.name),
            images,
            step_size=jnp.asarray(refiner.step_size),
            num_iterations=refiner.num_iterations,
        )
        predictions.setdefault(experiment.config.segmenter.title, np.asarray(initial))
        predictions[refiner.title] = np.asarray(refined)
    return predictions


def _describe_training(experiment: Experiment) -> dict[str, str]:
    """A line a network: how long it was trained, and what that led to."""
    config, workdir = experiment.config, experiment.workdir
    folder = workdir / "segmenter"
    summary = json.loads((folder / "summary.json").read_text())
    crops = 100 * summary["mean_iou_on_training_crops"]
    validation = 100 * summary["mean_iou_on_validation"]
    described = {
        config.segmenter.title: f"{_describe_epochs(folder, config.segmenter)}; mean "
        f"IoU {crops:.1f} on its training crops, {validation:.1f} on validation"
    }
    for name in config.refiners:
        settings, folder = config.refiner[name], workdir / "refiners" / name
        seconds = json.loads((folder / "selection.json").read_text())["seconds"]
        seconds += float(read_arrays(folder / "test.npz")["seconds"])
        described[settings.title] = (
            f"{_describe_epochs(folder, settings)}; sweep and test {seconds / 60:.1f} "
            "minutes"
        )
    return described


def _describe_epochs(folder: pathlib.Path, settings: ConfigDict) -> str:
    described = _describe_phase(folder, settings.training)
    if settings.fine_tuning.num_epochs:
        phase = _describe_phase(folder / "fine_tuning", settings.fine_tuning)
        described += f"; fine-tuning {phase}"
    return described


def _describe_phase(folder: pathlib.Path, training: ConfigDict) -> str:
    epochs = [json.loads(line) for line in read_lines(folder / "metrics.jsonl")]
    minutes = sum(epoch["seconds"] for epoch in epochs) / 60
    ended = len(epochs) < training.num_epochs
    until = "until patience ended" if ended else "all there were"
    return f"{len(epochs)} epochs, {until}, {minutes:.1f} minutes"
