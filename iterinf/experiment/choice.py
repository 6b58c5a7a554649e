"""The choice on validation and the test of trained refiners."""

import json
import time
import zlib
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from iterinf.config import IMPLIED, find_followed, flatten
from iterinf.data import Split
from iterinf.evaluation.label_maps import count_predictions
from iterinf.evaluation.measures import BOUNDARY_F1, MEAN_IOU, MEASURES, compute_measure
from iterinf.evaluation.selection import Curves, compute_curves, select
from iterinf.evaluation.sweep import Counts, count_refinements
from iterinf.evaluation.tally import Spec, Tally, pack
from iterinf.experiment.stages import Experiment
from iterinf.prediction.pipeline import set_test_dtype
from iterinf.runtime.profiling import trace_all
from iterinf.types import Selection
from iterinf.workdir import (
    Choice,
    append_sweep,
    find_refiner,
    has_choice,
    read_choice,
    read_followed,
    read_sweeps,
    read_test,
    write_choice,
    write_test,
)


class Sweep(NamedTuple):
    """The result of validation for some values of a refiner's scalar parameters."""

    parameters: dict[str, float]
    initial_mean_iou: float  # of the y it starts from; a fraction, as all below
    initial_boundary_f1: float
    mean_iou: list[list[float]]  # [step size, iteration], after 1.. iterations
    boundary_f1: list[list[float]]
    seconds: float
    settings: int  # checksum of the rest of the refiner's settings

    @property
    def curves(self) -> Curves:
        """The two grids, as arrays."""
        return Curves(np.asarray(self.mean_iou), np.asarray(self.boundary_f1))


def choose(experiment: Experiment, name: str) -> Selection:
    """Chooses step size, iterations and parameters of a refiner on validation.

    The refiner that it follows, if any, is chosen first. A choice that was made before
    is read. sweep.jsonl keeps what each of the parameters' values led to, so that an
    interrupted choice resumes.
    """
    workdir, config = experiment.workdir, experiment.config
    grid = config.refiner[name].selection
    if before := find_followed(config.refiner[name]):
        choose(experiment, before)
    followed = read_followed(workdir, config, name)
    if has_choice(workdir, name):
        return read_choice(workdir, name).refined
    experiment.train_refiner(name)  # not within the time that the sweep takes
    sweeps = _sweep_parameters(experiment, name, followed)
    selections = [
        select(sweep.curves, grid.step_sizes, grid.metric) for sweep in sweeps
    ]
    best = max(  # of equals, fewer iterations
        range(len(sweeps)),
        key=lambda i: (
            getattr(selections[i], grid.metric),
            -selections[i].num_iterations,
        ),
    )
    sweep = sweeps[best]
    selection = selections[best]._replace(parameters=sweep.parameters)
    started = time.monotonic()
    damped = _choose_damped_step(experiment, name, selection.parameters)
    seconds = time.monotonic() - started + sum(sweep.seconds for sweep in sweeps)
    choice = Choice(
        refined=selection,
        damped=damped,
        followed=followed,
        metric=grid.metric,
        seconds=round(seconds, 1),
    )
    curve = {
        **sweep.curves._asdict(),
        "initial_mean_iou": np.asarray(sweep.initial_mean_iou),
        "initial_boundary_f1": np.asarray(sweep.initial_boundary_f1),
        "step_sizes": np.asarray(grid.step_sizes),
    }
    write_choice(workdir, name, choice, curve)
    return selection


def _choose_damped_step(
    experiment: Experiment, name: str, parameters: dict[str, float]
) -> Selection | None:
    """Chooses the step size of a single step, a control of the loop."""
    grid = experiment.config.refiner[name].selection
    if not grid.damped_step_sizes:
        return None
    counts = _count(
        experiment,
        name,
        experiment.dataset.validation,
        grid.damped_step_sizes,
        1,
        "damped steps",
        parameters,
    )
    return select(compute_curves(counts.refined), grid.damped_step_sizes, grid.metric)


def _sweep_parameters(
    experiment: Experiment, name: str, followed: Selection | None
) -> list[Sweep]:
    """One sweep for all values of the parameters: a product over their names."""
    grid = experiment.config.refiner[name].selection
    tried = [
        dict(zip(grid.parameters, values, strict=True))
        for values in product(*grid.parameters.values())
    ]
    settings = _sum_settings(experiment.config.refiner[name], followed)
    fields = set(Sweep._fields)  # lines of an earlier version had fewer
    lines = read_sweeps(experiment.workdir, name)
    sweeps = [
        sweep
        for sweep in (Sweep(**line) for line in lines if line.keys() == fields)
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
        curves = compute_curves(counts.refined)
        sweep = Sweep(
            parameters,
            float(compute_measure(MEAN_IOU, counts.initial)),
            float(compute_measure(BOUNDARY_F1, counts.initial)),
            curves.mean_iou.tolist(),
            curves.boundary_f1.tolist(),
            time.monotonic() - started,
            settings,
        )
        append_sweep(experiment.workdir, name, sweep._asdict())
        sweeps.append(sweep)
    return sweeps


def _sum_settings(refiner: ConfigDict, followed: Selection | None) -> int:
    """A checksum of what a sweep depends on beside the values that it tries."""
    settings = json.loads(refiner.to_json())
    settings.pop("title")
    settings.pop("follows", None)
    if followed:
        settings["followed"] = followed._asdict()
    for key in ("parameters", "metric"):
        settings["selection"].pop(key)
    flat = flatten(settings)
    return _sum({k: v for k, v in flat.items() if v != IMPLIED.get(k.split(".")[-1])})


def _sum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def evaluate_segmenter(experiment: Experiment) -> None:
    """Runs the segmenter alone on the test split; writes segmenter/test.npz."""
    folder = experiment.workdir / "segmenter"
    if read_test(folder) is not None:
        return
    tally = count_predictions(
        set_test_dtype(experiment.segmenter, experiment.config),
        experiment.train_segmenter(),
        experiment.dataset.test.stack(),
        spec=_make_spec(experiment, details=True),
        batch_size=experiment.config.evaluation.batch_size,
    )
    write_test(folder, **pack("counts", tally))


def evaluate(experiment: Experiment, name: str) -> None:
    """Evaluates the choice, which is on disk by now, on the test split."""
    folder = find_refiner(experiment.workdir, name)
    selection = choose(experiment, name)
    _, damped, followed, *_ = read_choice(experiment.workdir, name)
    choice = [*selection[:2], *selection.parameters.values()]
    choice += [damped.step_size] if damped else []
    choice += [_sum(followed._asdict())] if followed else []
    known = read_test(folder)
    if known and np.array_equal(known["choice"], choice):
        return
    experiment.train_refiner(name)  # not within the time that the test takes
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
            details=True,
        )

    num_iterations = experiment.config.refiner[name].selection.num_iterations
    counts = count((selection.step_size,), num_iterations, "test")
    chosen = (0, selection.num_iterations - 1)
    # Of its own segmenter, if it has one; of the refiner that is followed.
    arrays = pack("initial", counts.initial)
    arrays |= pack("refined", _take(counts.refined, *chosen))
    if damped:
        refined = count((1.0, damped.step_size), 1, "controls").refined
        arrays |= pack("one_reconstruction", _take(refined, 0, 0))
        arrays |= pack("damped_step", _take(refined, 1, 0))
    curve = jax.tree.map(lambda x: x[:, 0], counts.refined)  # [n t]
    arrays |= {
        f"curve/{key}": compute_measure(measure, curve)
        for key, measure in MEASURES.items()
    }
    write_test(
        folder,
        # Step size, iterations, parameters, damped step, checksum of what is followed.
        choice=np.asarray(choice),
        **arrays,
        mean_iou=compute_measure(MEAN_IOU, curve),
        seconds=np.asarray(round(time.monotonic() - started, 1)),
    )


def _make_spec(experiment: Experiment, *, details: bool) -> Spec:
    return Spec(
        experiment.dataset.num_classes,
        experiment.config.evaluation.boundary_tolerance,
        details,
    )


def _take(tally: Tally, s: int, t: int) -> Tally:
    """One step size and iteration of a tally [n s t]."""
    return jax.tree.map(lambda x: x[:, s, t], tally)


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
    details: bool = False,
) -> Counts:
    config = experiment.config
    prepared = experiment.prepare(name, parameters)
    folder = find_refiner(experiment.workdir, name) / "sweep_trace"
    with trace_all(folder, on=config.trace_steps > 0):
        return count_refinements(
            *prepared,
            split.stack(),
            step_sizes=step_sizes,
            num_iterations=num_iterations,
            spec=_make_spec(experiment, details=details),
            batch_size=config.evaluation.sweep_batch_size,
            stop=config.refiner[name].selection.stop,
            count_stopped=count_stopped,
            title=f"{title} of {config.refiner[name].title}" if config.progress else "",
        )
