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
from iterinf.export import export_workdir
from iterinf.files import has_file, read_arrays, read_lines
from iterinf.objectives import replace_numbers
from iterinf.prediction import refine_labels, segment
from iterinf.protocol import choose, evaluate, evaluate_segmenter
from iterinf.provenance import describe_runs, log_run
from iterinf.report.results import (
    RefinerResult,
    choose_pictures,
    compare_to_controls,
    make_rows,
    write_results,
)
from iterinf.report.table import check_class_names
from iterinf.selection import Selection
from iterinf.settings import list_trained
from iterinf.stages import Experiment

MODES = (
    "run",
    "check_data",
    "train_segmenter",
    "train_refiner",
    "sweep",
    "evaluate",
    "report",
    "export",
)


def run(config: ConfigDict, workdir: pathlib.Path, mode: str, command: str) -> None:
    """Runs one stage, or all of them.

    Args:
      config: as of configs/base.py.
      workdir: where results go, and where an interrupted run goes on.
      mode: one of MODES. A stage runs those before it if their results are missing,
        but for `report`, which draws on what is there, and `export`, which takes all
        but config.export from a finished workdir.
      command: what the user typed, for the report.

    Raises:
      UserError: whatever the user can mend.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    if mode == "export":
        export_workdir(workdir, **config.export)
        return
    experiment = Experiment(config, workdir)
    check_class_names(experiment.dataset.classes)
    if mode == "check_data":
        experiment.check_data()
        experiment.check_refiners()
        print(_describe_dataset(experiment.dataset))
        return
    experiment.check_same_data()
    if mode != "report":
        experiment.check_refiners()
        log_run(workdir, command)
        _ = experiment.segmenter_variables
        for stage in _list_refiner_stages(experiment, mode):
            for name in config.refiners:
                stage(name)
        if mode in ("run", "evaluate"):
            evaluate_segmenter(experiment)
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
    _check_results(experiment)
    refiners = [_read_result(experiment, name) for name in config.refiners]
    plain = read_arrays(workdir / "segmenter" / "test.npz")["counts"]
    blocks = experiment.dataset.test.blocks
    num_resamples = config.evaluation.num_resamples
    write_results(
        workdir / "results",
        experiment.dataset,
        make_rows(config.segmenter.title, plain, refiners, blocks, num_resamples),
        refiners,
        choose_pictures(plain, refiners[-1]),
        functools.partial(_predict_test, experiment, refiners[:1] + refiners[1:][-1:]),
        compare_to_controls(plain, refiners, blocks, num_resamples),
        {"seed": config.seed, **describe_runs(workdir)}
        | _describe_training(experiment),
    )


def _check_results(experiment: Experiment) -> None:
    """Raises UserError for the first thing that the report would have to make."""
    config, workdir = experiment.config, experiment.workdir
    files = [
        workdir / "refiners" / name / file
        for name in config.refiners
        for file in ("selection.json", "curve.npz", "test.npz")
    ]
    for file in (*files, workdir / "segmenter" / "test.npz"):
        if not has_file(file):
            raise UserError(f"there is no {file}; run --mode=evaluate first")
    for key in list_trained(config):
        folder = workdir / key.replace("refiner.", "refiners/")
        if not has_checkpoint(folder):
            raise UserError(f"there is no checkpoint in {folder} to draw Figure 3 with")


def _read_result(experiment: Experiment, name: str) -> RefinerResult:
    folder = experiment.workdir / "refiners" / name
    settings = experiment.config.refiner[name]
    content = json.loads((folder / "selection.json").read_text())
    selection, damped = Selection(**content["refined"]), content.get("damped")
    return RefinerResult(
        name=name,
        title=f"{experiment.config.segmenter.title} + {settings.title}",
        step_size=selection.step_size,
        num_iterations=selection.num_iterations,
        parameters=selection.parameters,
        damped_step_size=damped and damped["step_size"],
        end_to_end="end_to_end" in settings and settings.end_to_end,
        folder=folder,
    )


def _predict_test(
    experiment: Experiment, refiners: list[RefinerResult], indices: list[int]
) -> dict[str, np.ndarray]:
    """Label maps of some test images, by row title, the segmenter's first.

    Of the paper's table this is what its Figure 3 shows: CRF first, DAE(y) last.
    """
    config, batch = experiment.config, experiment.dataset.test.stack(indices)
    plain = segment(experiment.segmenter, experiment.segmenter_variables, batch)
    predictions = {config.segmenter.title: np.asarray(plain)}
    for refiner in refiners:
        refined = refine_labels(
            experiment.segmenter,
            experiment.create_refiner(refiner.name),
            replace_numbers(experiment.train_refiner(refiner.name), refiner.parameters),
            batch,
            step_size=jnp.asarray(refiner.step_size),
            num_iterations=refiner.num_iterations,
            stop=config.refiner[refiner.name].selection.stop,
        )
        predictions[refiner.title] = np.asarray(refined)
    return predictions


def _describe_training(experiment: Experiment) -> dict[str, str]:
    """A line a network: how long it was trained, and what that led to."""
    config, workdir = experiment.config, experiment.workdir
    folder = workdir / "segmenter"
    summary = json.loads((folder / "summary.json").read_text())
    scores = [
        f"{100 * value:.1f} {key.removeprefix('mean_iou_').replace('_', ' ')}"
        for key, value in summary.items()
    ]
    trained = _describe_epochs(folder, config.segmenter)
    described = {config.segmenter.title: f"{trained}; mean IoU {', '.join(scores)}"}
    for name in config.refiners:
        settings, folder = config.refiner[name], workdir / "refiners" / name
        content = json.loads((folder / "selection.json").read_text())
        chosen = Selection(**content["refined"]).parameters
        seconds = content["seconds"] + read_arrays(folder / "test.npz")["seconds"]
        parts = [
            _describe_epochs(folder, settings),
            *(f"{name} {value:g}" for name, value in chosen.items()),
            f"sweep and test {seconds / 60:.1f} minutes",
        ]
        described[settings.title] = "; ".join(parts)
    return described


def _describe_epochs(folder: pathlib.Path, settings: ConfigDict) -> str:
    if "training" not in settings:
        return "not trained here"
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
