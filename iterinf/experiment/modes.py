"""The modes: which stages of an experiment run, in which order."""

import functools
import json
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iterinf.config import find_followed, list_trained
from iterinf.data.dataset import stack_records
from iterinf.errors import UserError, check_known
from iterinf.evaluation.label_maps import refine_labels, segment
from iterinf.evaluation.tally import unpack
from iterinf.experiment.choice import choose, evaluate, evaluate_segmenter
from iterinf.experiment.stages import Experiment
from iterinf.prediction.export import export_workdir
from iterinf.prediction.folder import predict_files
from iterinf.prediction.pipeline import set_test_dtype
from iterinf.report.contact_sheet import plot_contact_sheet
from iterinf.report.figures import save_figure
from iterinf.report.html import write_page
from iterinf.report.results import (
    RefinerResult,
    Report,
    choose_images,
    describe_differences,
    list_differences,
    make_rows,
    write_results,
)
from iterinf.report.summary import format_summaries
from iterinf.report.table import check_class_names
from iterinf.report.trajectories import ImageResult, pack_maps
from iterinf.runtime.bars import create_bar
from iterinf.runtime.distributed import print_once
from iterinf.runtime.files import has_file
from iterinf.runtime.provenance import describe_runs, log_run
from iterinf.types import Batch
from iterinf.workdir import (
    Arrays,
    find_network,
    find_refiner,
    has_checkpoint,
    read_choice,
    read_curve,
    read_epochs,
    read_summary,
    read_test,
)

MODES = (
    "run",
    "check_data",
    "train_segmenter",
    "train_refiner",
    "sweep",
    "evaluate",
    "report",
    "predict",
    "export",
)
_NUM_IN_FIGURE = 3  # images of Figure 3


def run(config: ConfigDict, workdir: pathlib.Path, mode: str, command: str) -> None:
    """Runs one stage, or all of them.

    Args:
      config: The config, see configs/base.py.
      workdir: The folder of the results, from which an interrupted run resumes.
      mode: One of MODES. A stage runs those before it if their results are missing,
        except `report`, which only reads results, and `predict` and `export`,
        which take all but the config's part of their name from a finished workdir.
      command: The command line, for the report.

    Raises:
      UserError: If the user can correct the cause.
    """
    check_known("mode", mode, MODES)
    if mode == "predict":
        predict_files(workdir, **config.predict, show_progress=config.progress)
        return
    if mode == "export":
        export_workdir(workdir, **config.export)
        return
    experiment = Experiment(config, workdir)
    check_class_names(experiment.dataset.classes)
    if mode == "check_data":
        check_data(experiment)
        return
    experiment.check_same_data()
    if mode != "report":
        experiment.check_refiners()
        log_run(workdir, command)
        experiment.train_segmenter()
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
    """Lists the stages of each refiner: all choices come before any test image."""
    choice = functools.partial(choose, experiment)
    stages: dict[str, list[Callable[[str], object]]] = {
        "train_segmenter": [],
        "train_refiner": [experiment.train_refiner],
        "sweep": [choice],
        "evaluate": [choice, functools.partial(evaluate, experiment)],
    }
    return stages["evaluate" if mode == "run" else mode]


def check_data(experiment: Experiment) -> None:
    """Prints what the data set holds, and draws some of it.

    Writes data/contact_sheet.png.

    Raises:
      UserError: whatever would stop the experiment later.
    """
    summaries = experiment.check_data()
    experiment.check_refiners()
    path = experiment.workdir / "data" / "contact_sheet.png"
    dataset = experiment.dataset
    save_figure(plot_contact_sheet(dataset), path)
    print_once(
        f"{dataset.name}, {dataset.num_classes} classes: no problems found\n",
        format_summaries(summaries, dataset.classes),
        f"\nImages beside their labels: {path}",
    )


def report(experiment: Experiment) -> None:
    """Writes results/ and report.html from what the other stages left.

    Raises:
      UserError: if a refiner has no result yet.
    """
    config, workdir = experiment.config, experiment.workdir
    _check_results(experiment)
    refiners = [_read_result(experiment, name) for name in config.refiners]
    plain = unpack(_read_test(workdir / "segmenter"), "counts")
    blocks = experiment.dataset.test.blocks
    num_resamples = config.evaluation.num_resamples
    rows = make_rows(config.segmenter.title, plain, refiners, blocks, num_resamples)
    differences = list_differences(rows, refiners, blocks, num_resamples)
    notes = [*describe_differences(differences), *_list_cut_off(experiment)]
    provenance = {"seed": config.seed, **describe_runs(workdir)}
    provenance |= _describe_training(experiment)
    before = plain.confusion
    in_figure = choose_images(before, refiners[-1], _NUM_IN_FIGURE)
    in_page = choose_images(before, refiners[-1], config.report.num_images)
    positions = dict.fromkeys(in_figure + in_page)
    images = {}
    with create_bar(
        "images of the report", len(positions), "image", show=config.progress, delay=2.0
    ) as bar:
        for i in positions:
            images[i] = _predict_test(experiment, refiners, i)
            bar.update()
    content = Report(
        experiment.dataset,
        rows,
        refiners,
        differences,
        notes,
        provenance,
        json.loads(config.to_json()),
        figure_images=[images[i] for i in in_figure],
        page_images=[images[i] for i in in_page],
    )
    write_results(content, workdir / "results")
    write_page(content, workdir / "report.html")


def _check_results(experiment: Experiment) -> None:
    """Raises UserError if a result that the report needs is missing."""
    config, workdir = experiment.config, experiment.workdir
    _read_test(workdir / "segmenter")
    for name in config.refiners:
        read_choice(workdir, name)
        _read_test(find_refiner(workdir, name))
    for key in list_trained(config):
        folder = find_network(workdir, key)
        if not has_checkpoint(folder):
            raise UserError(f"there is no checkpoint in {folder} to draw Figure 3 with")


def _read_test(folder: pathlib.Path) -> Arrays:
    arrays, path = read_test(folder), folder / "test.npz"
    if arrays is None:
        old = f"{path} is of an earlier version"
        reason = old if has_file(path) else f"there is no {path}"
        raise UserError(f"{reason}; run --mode=evaluate first")
    return arrays


def _read_result(experiment: Experiment, name: str) -> RefinerResult:
    config = experiment.config
    settings, followed = config.refiner[name], find_followed(config.refiner[name])
    selection, damped, *_ = read_choice(experiment.workdir, name)
    return RefinerResult(
        name=name,
        title=f"{config.segmenter.title} + {settings.title}",
        step_size=selection.step_size,
        step_sizes=tuple(settings.selection.step_sizes),
        num_iterations=selection.num_iterations,
        parameters=selection.parameters,
        damped_step_size=damped and damped.step_size,
        end_to_end="end_to_end" in settings and settings.end_to_end,
        is_control="reads_y" in settings.model and not settings.model.reads_y,
        curve=read_curve(experiment.workdir, name),
        test=_read_test(find_refiner(experiment.workdir, name)),
        follows=f"{config.segmenter.title} + {config.refiner[followed].title}"
        if followed
        else "",
    )


def _predict_test(
    experiment: Experiment, refiners: list[RefinerResult], position: int
) -> ImageResult:
    """A test image, and its label maps by all networks, step sizes and iterations."""
    config, record = experiment.config, experiment.dataset.test[position]
    segmenter = set_test_dtype(experiment.segmenter, config)
    batch, row = _stack_around(experiment, position)
    plain = segment(segmenter, experiment.train_segmenter(), batch)
    segmented = np.asarray(plain, np.uint8)[row]
    refined = {}
    for refiner in refiners:
        grid = config.refiner[refiner.name].selection
        maps = refine_labels(
            *experiment.prepare(refiner.name, refiner.parameters),
            batch,
            step_sizes=jnp.asarray(refiner.step_sizes),
            num_iterations=grid.num_iterations,
            stop=grid.stop,
        )
        refined[refiner.name] = [pack_maps(m, segmented) for m in np.asarray(maps[row])]
    return ImageResult(record, segmented, refined)


def _stack_around(experiment: Experiment, position: int) -> tuple[Batch, int]:
    """A test image alone, or in the batch that it was counted in; its row there."""
    test, size = experiment.dataset.test, 1
    if getattr(experiment.segmenter, "statistics", "") == "batch":
        size = experiment.config.evaluation.batch_size
    first = position - position % size
    indices = [i % len(test) for i in range(first, first + size)]
    return stack_records([test[i] for i in indices]), position - first


def _describe_training(experiment: Experiment) -> dict[str, str]:
    """Describes the training and the scores of each network in one line."""
    config, workdir = experiment.config, experiment.workdir
    folder = workdir / "segmenter"
    scores = [
        f"{100 * value:.1f} {key.removeprefix('mean_iou_').replace('_', ' ')}"
        for key, value in read_summary(workdir).items()
    ]
    trained = _describe_epochs(folder, config.segmenter)
    described = {config.segmenter.title: f"{trained}; mean IoU {', '.join(scores)}"}
    for name in config.refiners:
        settings, folder = config.refiner[name], find_refiner(workdir, name)
        choice = read_choice(workdir, name)
        seconds = choice.seconds + _read_test(folder)["seconds"]
        parts = [
            _describe_epochs(folder, settings),
            *(f"{key} {value:g}" for key, value in choice.refined.parameters.items()),
            f"chosen by {settings.selection.metric}",
            f"sweep and test {seconds / 60:.1f} minutes",
        ]
        described[settings.title] = "; ".join(parts)
    return described


def _list_cut_off(experiment: Experiment) -> list[str]:
    """Lists the trainings that used all their epochs and may not have converged."""
    sentences = []
    for key, network in list_trained(experiment.config).items():
        folder = find_network(experiment.workdir, key)
        phases = [("trained", folder, network.training)]
        if network.fine_tuning.num_epochs:
            phases.append(("fine-tuned", folder / "fine_tuning", network.fine_tuning))
        for verb, phase, training in phases:
            values = read_epochs(phase)
            if len(values) < training.num_epochs:
                continue
            best = min(values, key=functools.partial(_rank, training.monitor))
            sentences.append(
                f"{network.title} was {verb} for all of its {len(values)} epochs "
                f"(best {training.monitor} after {best['epoch']}): it may not have "
                "converged."
            )
    return sentences


def _rank(monitor: str, epoch: dict[str, int | float]) -> float:
    """Returns a sort key; lower is better."""
    return epoch[monitor] if monitor.endswith("loss") else -epoch[monitor]


def _describe_epochs(folder: pathlib.Path, settings: ConfigDict) -> str:
    if "training" not in settings:
        return "not trained here"
    described = _describe_phase(folder, settings.training)
    if settings.fine_tuning.num_epochs:
        phase = _describe_phase(folder / "fine_tuning", settings.fine_tuning)
        described += f"; fine-tuning {phase}"
    return described


def _describe_phase(folder: pathlib.Path, training: ConfigDict) -> str:
    epochs = read_epochs(folder)
    minutes = sum(epoch["seconds"] for epoch in epochs) / 60
    ended = len(epochs) < training.num_epochs
    until = "until patience ended" if ended else "epoch limit reached"
    return f"{len(epochs)} epochs, {until}, {minutes:.1f} minutes"
