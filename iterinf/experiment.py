"""The stages of an experiment, in order; each goes on from what the workdir holds."""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iterinf.data import Dataset, check_dataset
from iterinf.errors import UserError
from iterinf.prediction import predict_labels
from iterinf.report.results import (
    RefinerResult,
    collect_provenance,
    make_rows,
    write_results,
)
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
      mode: one of MODES. A stage runs those before it if their results are missing;
        `report` and `evaluate` draw on what is there.
      command: what the user typed, for the report.

    Raises:
      UserError: whatever the user can mend.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    experiment = Experiment(config, workdir)
    if mode == "check_data":
        check_dataset(experiment.dataset)
        print(_describe_dataset(experiment.dataset))
        return
    _ = experiment.segmenter_variables
    if mode == "train_segmenter":
        return
    for name in config.refiners:
        if mode == "train_refiner":
            experiment.train_refiner(name)
        if mode in ("sweep", "run", "evaluate", "report"):
            experiment.select(name)
    if mode in ("run", "evaluate", "report"):
        for name in config.refiners:
            experiment.evaluate(name)
        report(experiment, command)


def _describe_dataset(dataset: Dataset) -> str:
    sizes = [len(s) for s in (dataset.train, dataset.validation, dataset.test)]
    return (
        f"{dataset.name}: {sizes[0]} training, {sizes[1]} validation, {sizes[2]} test "
        f"images, {dataset.num_classes} classes: nothing wrong"
    )


def report(experiment: Experiment, command: str) -> None:
    """Writes results/ from what the other stages left."""
    refiners = [_read_result(experiment, name) for name in experiment.config.refiners]
    rows = make_rows(
        experiment.config.segmenter.title,
        refiners,
        experiment.dataset.test.blocks,
        experiment.config.evaluation.num_resamples,
    )
    summary = json.loads(
        (experiment.workdir / "segmenter" / "summary.json").read_text()
    )
    write_results(
        experiment.workdir / "results",
        experiment.dataset,
        rows,
        refiners,
        functools.partial(_predict_test, experiment, refiners),
        collect_provenance(
            command,
            experiment.config.seed,
            training_minutes=round(_sum_training_seconds(experiment.workdir) / 60, 1),
            **summary,
        ),
    )


def _read_result(experiment: Experiment, name: str) -> RefinerResult:
    folder = experiment.workdir / "refiners" / name
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


def _sum_training_seconds(workdir: pathlib.Path) -> float:
    logs = workdir.glob("**/metrics.jsonl")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return sum(json.loads(line)["seconds"] for line in lines)
