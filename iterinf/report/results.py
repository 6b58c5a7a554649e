"""The results folder: table and figures, from the outputs of the stages."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from iterinf.data.dataset import Dataset
from iterinf.evaluation.bootstrap import Interval, bootstrap
from iterinf.evaluation.measures import BOUNDARY_F1, MEAN_IOU, MEASURES, compute_measure
from iterinf.evaluation.tally import Tally, unpack
from iterinf.ops.metrics import compute_mean_iou
from iterinf.report.figures import plot_iterations, plot_segmentations, save_figure
from iterinf.report.rows import Row, make_row
from iterinf.report.table import (
    TITLES,
    format_console_table,
    format_gain,
    write_table,
)
from iterinf.report.trajectories import ImageResult, unpack_maps
from iterinf.runtime.distributed import print_once
from iterinf.runtime.files import read_arrays

# Key in test.npz -> suffix of the row's title.
SUFFIXES = {
    "initial": ", its own segmenter",
    "one_reconstruction": ", one reconstruction",
    "damped_step": ", one damped step",
    "refined": "",
}
SEGMENTER = "the segmenter alone"
CONTROLS = {  # key in test.npz -> description of the control
    "one_reconstruction": "one full reconstruction",
    "damped_step": "one damped step",
}


_LISTED = {"mean IoU": MEAN_IOU} | {TITLES[k]: m for k, m in MEASURES.items()}


class Difference(NamedTuple):
    """Differences between two test results, with paired 95% intervals."""

    model: str  # title of the refiner's row
    over: str  # the other result: SEGMENTER, one of CONTROLS, or another title
    intervals: dict[str, Interval]  # by "mean IoU", "boundary F1", ...


class RefinerResult(NamedTuple):
    """The result of one refiner."""

    name: str
    title: str  # as in the table, e.g. FCN8 + DAE(y)
    step_size: float
    step_sizes: tuple[float, ...]  # the candidates for step_size
    num_iterations: int
    parameters: dict[str, float]  # chosen on validation, by name
    damped_step_size: float | None  # None: no controls
    end_to_end: bool  # whether it has its own segmenter
    is_control: bool  # whether it is a control for other refiners
    folder: pathlib.Path  # holds curve.npz, test.npz
    follows: str = ""  # title of the followed refiner; "": none


def make_rows(
    title: str,
    plain: Tally,
    refiners: Sequence[RefinerResult],
    blocks: Sequence[int],
    num_resamples: int,
) -> list[Row]:
    """Creates the rows of the segmenter, and of each refiner and its controls."""
    rows = [make_row(title, plain, plain, blocks)]
    for refiner in refiners:
        test = read_arrays(refiner.folder / "test.npz")
        settings: dict[str, tuple[float | None, int]] = {}
        if refiner.end_to_end:
            settings["initial"] = (None, 0)
        if refiner.damped_step_size is not None:
            settings["one_reconstruction"] = (1.0, 1)
            settings["damped_step"] = (refiner.damped_step_size, 1)
        settings["refined"] = (refiner.step_size, refiner.num_iterations)
        for key, (step_size, num_iterations) in settings.items():
            rows.append(
                make_row(
                    refiner.title + SUFFIXES[key],
                    unpack(test, key),
                    plain,
                    blocks,
                    step_size=step_size,
                    num_iterations=num_iterations,
                    is_control=refiner.is_control or key != "refined",
                    num_resamples=num_resamples,
                )
            )
    return rows


def list_differences(
    plain: Tally,
    refiners: Sequence[RefinerResult],
    blocks: Sequence[int],
    num_resamples: int,
) -> list[Difference]:
    """Compares each refiner with the segmenter, its controls and its predecessor.

    The controls include the refiner that does not read y. The predecessor is the
    refiner that it follows, if any.
    """
    tests = {r.title: read_arrays(r.folder / "test.npz") for r in refiners}
    results = {title: unpack(test, "refined") for title, test in tests.items()}
    without_y = {r.title: results[r.title] for r in refiners if r.is_control}
    differences = []
    for refiner in refiners:
        test, baselines = tests[refiner.title], {SEGMENTER: plain}
        if refiner.follows:
            baselines[refiner.follows] = results[refiner.follows]
        if refiner.damped_step_size is not None:
            baselines |= {what: unpack(test, key) for key, what in CONTROLS.items()}
            baselines |= without_y
        compare = functools.partial(
            bootstrap,
            refined=results[refiner.title],
            blocks=blocks,
            num_resamples=num_resamples,
        )
        for over, baseline in baselines.items():
            found = {title: compare(m, baseline) for title, m in _LISTED.items()}
            differences.append(Difference(refiner.title, over, found))
    return differences


def describe_differences(differences: Sequence[Difference]) -> list[str]:
    """States for each refiner whether it gains, and whether it beats both controls.

    A gain requires that the paired interval of the difference in mean IoU lies above
    zero. Controls are reported only for refiners that gain, since a refiner can beat
    them by changing nothing. The gain over a followed refiner is given in all measures.
    """
    sentences = []
    for model in dict.fromkeys(difference.model for difference in differences):
        own = {d.over: d.intervals for d in differences if d.model == model}
        gain = own[SEGMENTER]["mean IoU"]
        controls = {over: own[over] for over in CONTROLS.values() if over in own}
        if gain.low <= 0 or not controls:
            sentences.append(
                f"{model} {_judge(gain)} the segmenter alone: "
                f"{_format_interval(gain)} points of mean IoU."
            )
            if not controls:
                followed = [over for over in own if over != SEGMENTER]
                sentences += [_compare(model, over, own[over]) for over in followed]
            continue
        gains = {over: found["mean IoU"] for over, found in controls.items()}
        beats = all(gain.low > 0 for gain in gains.values())
        verdict = "beats" if beats else "does not clearly beat"
        listed = " and ".join(
            f"{_format_interval(gain)} points of mean IoU over {over}"
            for over, gain in gains.items()
        )
        sentences.append(f"{model} {verdict} both controls by iterating: {listed}.")
        told = [own[SEGMENTER]]  # the best damped step may be a full reconstruction
        for over, found in own.items():
            if found not in told:
                told.append(found)
                sentences.append(_compare(model, over, found))
    return sentences


def _compare(model: str, over: str, found: Mapping[str, Interval]) -> str:
    texts = (f"{title} {_format_interval(x)}" for title, x in found.items())
    return f"{model} over {over}: {', '.join(texts)}."


def _judge(gain: Interval) -> str:
    if gain.low > 0:
        return "improves on"
    return "is worse than" if gain.high < 0 else "does not clearly improve on"


def _format_interval(interval: Interval) -> str:
    gain, low, high = (format_gain(value, 2) for value in interval)
    return f"{gain} [{low}, {high}]"


def write_results(
    directory: pathlib.Path,
    dataset: Dataset,
    rows: Sequence[Row],
    refiners: Sequence[RefinerResult],
    pictures: Sequence[ImageResult],
    differences: Sequence[Difference],
    notes: Sequence[str],
    provenance: dict[str, Any],
) -> None:
    """Writes table.{csv,json,md}, Figure 4 for each refiner, and Figure 3.

    Args:
      directory: The output folder; figures go to figures/.
      dataset: The data set, for its classes and colours.
      rows: The rows of the table.
      refiners: The results of the refiners.
      pictures: The images of Figure 3.
      differences: Differences between refiners and their controls, for table.json.
      notes: Sentences below the table.
      provenance: The provenance of the results, below the notes.
    """
    listed = [
        {"model": d.model, "over": d.over}
        | {title: list(interval) for title, interval in d.intervals.items()}
        for d in differences
    ]
    write_table(rows, dataset.classes, directory, notes, provenance, listed)
    _plot_curves(refiners, directory / "figures")
    figure = plot_segmentations(
        np.stack([picture.record.image for picture in pictures]),
        np.stack([picture.record.label for picture in pictures]),
        _list_predictions(rows[0].model, refiners, pictures),
        dataset.classes,
        dataset.colors,
    )
    save_figure(figure, directory / "figures" / "figure3.png")
    print_once(
        format_console_table(rows, dataset.classes),
        "",
        *notes,
        "",
        f"Table and figures written to {directory}",
    )


def _list_predictions(
    title: str, refiners: Sequence[RefinerResult], pictures: Sequence[ImageResult]
) -> dict[str, UInt8[np.ndarray, "n h w"]]:
    """Returns label maps by title: the segmenter and the first and last refiner.

    For the rows of the paper's table these are the ones in its Figure 3: CRF, DAE(y).
    """
    predictions = {title: np.stack([picture.segmented for picture in pictures])}
    for refiner in (refiners[0], refiners[-1]):
        maps = [choose_map(picture, refiner) for picture in pictures]
        predictions[refiner.title] = np.stack(maps)
    return predictions


def choose_map(
    picture: ImageResult, refiner: RefinerResult
) -> UInt8[np.ndarray, "h w"]:
    """Returns the label map for the chosen step size and number of iterations."""
    packed = picture.refined[refiner.name][refiner.step_sizes.index(refiner.step_size)]
    return unpack_maps(packed, picture.segmented)[refiner.num_iterations]


def _plot_curves(refiners: Sequence[RefinerResult], directory: pathlib.Path) -> None:
    """Draws Figure 4 for every refiner with several iterations.

    As in the paper, the figure of a refiner with controls (a DAE) also shows those
    without (the CRF), if they start from the same y.
    """
    iterating = [refiner for refiner in refiners if read_curves(refiner)[2].size > 2]
    for refiner in iterating:
        step_sizes, validation, test = read_curves(refiner)
        boundaries = read_boundary_curves(refiner)
        others = {}
        for other in iterating if refiner.damped_step_size is not None else []:
            if other.damped_step_size is None and not other.follows:
                sizes, curves, test_curve = read_curves(other)
                others[other.title] = (curves[sizes.index(other.step_size)], test_curve)
        figure = plot_iterations(
            validation,
            step_sizes,
            refiner.step_size,
            refiner.num_iterations,
            test,
            title=refiner.title,
            boundary_f1=boundaries,
            test_measures=_read_test_measures(refiner),
            others=others,
            start=refiner.follows or "segmenter alone",
        )
        save_figure(figure, directory / f"figure4_{refiner.name}.png")


def read_curves(
    refiner: RefinerResult,
) -> tuple[list[float], Float[np.ndarray, "s p"], Float[np.ndarray, " q"]]:
    """Reads step sizes, and mean IoU after 0..t iterations on validation and test."""
    curve = read_arrays(refiner.folder / "curve.npz")
    test = read_arrays(refiner.folder / "test.npz")
    step_sizes = curve["step_sizes"].tolist()
    initial = np.full((len(step_sizes), 1), curve["initial_mean_iou"])
    start = compute_mean_iou(test["initial"].sum(axis=0))
    return (
        step_sizes,
        np.concatenate([initial, curve["mean_iou"]], axis=1),
        np.concatenate([[start], test["mean_iou"]]),
    )


def read_boundary_curves(
    refiner: RefinerResult,
) -> tuple[Float[np.ndarray, "s p"], Float[np.ndarray, " q"]] | None:
    """Reads boundary F1 like `read_curves`; None for choices of earlier versions."""
    curve = read_arrays(refiner.folder / "curve.npz")
    test = read_arrays(refiner.folder / "test.npz")
    if "boundary_f1" not in curve:
        return None
    initial = np.full((len(curve["boundary_f1"]), 1), curve["initial_boundary_f1"])
    start = compute_measure(BOUNDARY_F1, unpack(test, "initial"))
    return (
        np.concatenate([initial, curve["boundary_f1"]], axis=1),
        np.concatenate([[start], test["curve/boundary_f1"]]),
    )


def _read_test_measures(
    refiner: RefinerResult,
) -> dict[str, Float[np.ndarray, " p"]]:
    """Reads NLL and fragmentation on test after 0..t iterations, by axis label."""
    test = read_arrays(refiner.folder / "test.npz")
    initial = unpack(test, "initial")
    units = {"nll": "NLL (nats per pixel)", "fragmentation": "fragmentation"}
    return {
        unit: np.append(compute_measure(MEASURES[name], initial), test[f"curve/{name}"])
        for name, unit in units.items()
    }


def choose_images(
    plain: Int[np.ndarray, "n k k"], refiner: RefinerResult, num_pictures: int
) -> list[int]:
    """Chooses test images at equal steps of rank by gain in correct pixels.

    The first has the largest gain and the last the largest loss, so that failures are
    shown too; three images are the best, the median and the worst.
    """
    refined = read_arrays(refiner.folder / "test.npz")["refined"]
    gained = np.einsum("nkk->n", refined - plain)
    order = np.argsort(-gained, kind="stable")  # most gained first
    positions = np.linspace(0, len(order) - 1, min(num_pictures, len(order)))
    return [int(order[int(position)]) for position in positions]
