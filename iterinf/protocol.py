"""Validation chooses, test follows: what is done with a refiner once it is trained."""

import json
import time
import zlib
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from iterinf.data import Split
from iterinf.evaluation import compute_mean_iou
from iterinf.files import (
    append_line,
    create_folder,
    has_file,
    read_arrays,
    read_lines,
    write_arrays,
    write_json,
)
from iterinf.objectives import replace_numbers
from iterinf.pipeline import set_test_dtype
from iterinf.prediction import count_predictions
from iterinf.selection import Counts, Selection, count_refinements, select
from iterinf.stages import Experiment
from iterinf.tracing import trace_all


class Sweep(NamedTuple):
    """Mean IoU on validation, a fraction, for some values of a refiner's numbers."""

    parameters: dict[str, float]
    initial_mean_iou: float  # of the segmenter's y
    mean_iou: list[list[float]]  # [step size, iteration], after 1.. iterations
    seconds: float
    settings: int  # checksum of the rest of the refiner's settings


def choose(experiment: Experiment, name: str) -> Selection:
    """Chooses step size, iterations and parameters of a refiner on validation.

    Writes curve.npz and selection.json; where the latter is there, reads it. A line of
    sweep.jsonl keeps what some values of the parameters led to, so that it goes on.
    """
    folder = experiment.workdir / "refiners" / name
    if has_file(folder / "selection.json"):
        chosen = json.loads((folder / "selection.json").read_text())["refined"]
        return Selection(**chosen)
    grid = experiment.config.refiner[name].selection
    experiment.train_refiner(name)
    sweeps = _sweep_parameters(experiment, name)
    selections = [
        select(np.asarray(sweep.mean_iou), grid.step_sizes) for sweep in sweeps
    ]
    best = max(  # of equals, fewer iterations
        range(len(sweeps)),
        key=lambda i: (selections[i].mean_iou, -selections[i].num_iterations),
    )
    sweep = sweeps[best]
    selection = selections[best]._replace(parameters=sweep.parameters)
    content: dict[str, Any] = {"refined": selection._asdict()}
    started = time.monotonic()
    if grid.damped_step_sizes:
        counts = _count(
            experiment,
            name,
            experiment.dataset.validation,
            grid.damped_step_sizes,
            1,
            "damped steps",
            selection.parameters,
        )
        damped = compute_mean_iou(counts.refined.sum(axis=0))
        content["damped"] = select(damped, grid.damped_step_sizes)._asdict()
    content["initial_mean_iou"] = sweep.initial_mean_iou
    seconds = time.monotonic() - started + sum(sweep.seconds for sweep in sweeps)
    content["seconds"] = round(seconds, 1)
    write_arrays(
        folder / "curve.npz",
        mean_iou=np.asarray(sweep.mean_iou),
        initial_mean_iou=np.asarray(sweep.initial_mean_iou),
        step_sizes=np.asarray(grid.step_sizes),
    )
    write_json(folder / "selection.json", content)
    return selection


def _sweep_parameters(experiment: Experiment, name: str) -> list[Sweep]:
    """One sweep for all values of the parameters: a product over their names."""
    folder = experiment.workdir / "refiners" / name
    create_folder(folder)
    path = folder / "sweep.jsonl"
    grid = experiment.config.refiner[name].selection
    tried = [
        dict(zip(grid.parameters, values, strict=True))
        for values in product(*grid.parameters.values())
    ]
    settings = _sum_settings(experiment.config.refiner[name])
    done = [Sweep(**json.loads(line)) for line in read_lines(path)]
    sweeps = [
        sweep
        for sweep in done
        if sweep.parameters in tried and sweep.settings == settings
    ]
    for i, parameters in enumerate(tried):
        if parameters in [sweep.parameters for sweep in sweeps]:
            continue
        started = time.monotonic()
        counts = _count(
            experiment,
            name,
            experiment.dataset.validation,
            grid.step_sizes,
            grid.num_iterations,
            "sweep" if len(tried) == 1 else f"sweep {i + 1} of {len(tried)}",
            parameters,
            count_stopped=grid.count_stopped,
        )
        sweep = Sweep(
            parameters,
            float(compute_mean_iou(counts.initial.sum(axis=0))),
            compute_mean_iou(counts.refined.sum(axis=0)).tolist(),
            time.monotonic() - started,
            settings,
        )
        append_line(path, json.dumps(sweep._asdict()))
        sweeps.append(sweep)
    return sweeps


def _sum_settings(refiner: ConfigDict) -> int:
    """A checksum of what a sweep depends on beside the values that it tries."""
    settings = json.loads(refiner.to_json())
    settings.pop("title"), settings["selection"].pop("parameters")
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())


def evaluate_segmenter(experiment: Experiment) -> None:
    """Runs the plain network on the test split; writes segmenter/test.npz."""
    path = experiment.workdir / "segmenter" / "test.npz"
    if has_file(path):
        return
    counts = count_predictions(
        set_test_dtype(experiment.segmenter, experiment.config),
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
    content = json.loads(path.with_name("selection.json").read_text())
    damped = content.get("damped")  # missing: there are no controls
    choice = [*selection[:2], *selection.parameters.values()]
    choice += [damped["step_size"]] if damped else []
    if has_file(path) and np.array_equal(read_arrays(path)["choice"], choice):
        return
    experiment.train_refiner(name)
    started = time.monotonic()

    def count(step_sizes, num_iterations, title):
        return _count(
            experiment,
            name,
            experiment.dataset.test,
            step_sizes,
            num_iterations,
            title,
            selection.parameters,
        )

    num_iterations = experiment.config.refiner[name].selection.num_iterations
    counts = count((selection.step_size,), num_iterations, "test")
    controls = {}
    if damped:
        refined = count((1.0, damped["step_size"]), 1, "controls").refined
        controls = {"one_reconstruction": refined[:, 0, 0]}
        controls["damped_step"] = refined[:, 1, 0]
    write_arrays(
        path,
        choice=np.asarray(choice),  # step size, iterations, parameters, damped step
        initial=counts.initial,  # of its own segmenter, where it has one
        refined=counts.refined[:, 0, selection.num_iterations - 1],
        **controls,
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
    parameters: dict[str, float],
    *,
    count_stopped: bool = True,
) -> Counts:
    config = experiment.config
    networks = experiment.train_refiner(name)
    folder = experiment.workdir / "refiners" / name / "sweep_trace"
    with trace_all(folder, on=config.trace_steps > 0):
        return count_refinements(
            set_test_dtype(experiment.segmenter, config),
            set_test_dtype(experiment.create_refiner(name), config),
            replace_numbers(networks, parameters),
            split.stack(),
            step_sizes=step_sizes,
            num_iterations=num_iterations,
            num_classes=experiment.dataset.num_classes,
            batch_size=config.evaluation.sweep_batch_size,
            stop=config.refiner[name].selection.stop,
            count_stopped=count_stopped,
            title=f"{title} of {config.refiner[name].title}" if config.progress else "",
        )
