"""The results folder: table and figures, from the outputs of the stages."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from iterinf.data.dataset import Dataset
from iterinf.evaluation.bootstrap import Interval, bootstrap
from iterinf.evaluation.measures import MEAN_IOU, MEASURES
from iterinf.evaluation.tally import Tally, unpack
from iterinf.report.curves import join_curves
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
from iterinf.workdir import Arrays

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
    curve: Arrays  # on validation, curve.npz
    test: Arrays  # test.npz
    follows: str = ""  # title of the followed refiner; "": none


class Report(NamedTuple):
    """The contents of results/ and report.html."""

    dataset: Dataset
    rows: Sequence[Row]  # of the table, with the segmenter alone first
    refiners: Sequence[RefinerResult]
    differences: Sequence[Difference]  # between refiners and their controls
    notes: Sequence[str]  # sentences below the table
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]  # as plain nested dicts
    figure_images: Sequence[ImageResult]  # of Figure 3
    page_images: Sequence[ImageResult]  # of the page's viewer


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
                    unpack(refiner.test, key),
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
    rows: Sequence[Row],
    refiners: Sequence[RefinerResult],
    blocks: Sequence[int],
    num_resamples: int,
) -> list[Difference]:
    """Compares each refiner with the segmenter, its controls and its predecessor.

    The controls include the refiner that does not read y. The predecessor is the
    refiner that it follows, if any. The differences to the segmenter are in the rows.
    """
    over_segmenter = {row.model: _get_intervals(row) for row in rows}
    measures = {"mean IoU": MEAN_IOU} | {TITLES[k]: m for k, m in MEASURES.items()}
    tests = {refiner.title: refiner.test for refiner in refiners}
    results = {title: unpack(test, "refined") for title, test in tests.items()}
    without_y = {r.title: results[r.title] for r in refiners if r.is_control}
    differences = []
    for refiner in refiners:
        title, baselines = refiner.title, {}
        differences.append(Difference(title, SEGMENTER, over_segmenter[title]))
        if refiner.follows:
            baselines[refiner.follows] = results[refiner.follows]
        if refiner.damped_step_size is not None:
            test = tests[title]
            baselines |= {what: unpack(test, key) for key, what in CONTROLS.items()}
            baselines |= without_y
        for over, baseline in baselines.items():
            intervals = {
                name: bootstrap(
                    measure,
                    baseline,
                    results[title],
                    blocks,
                    num_resamples=num_resamples,
                )
                for name, measure in measures.items()
            }
            differences.append(Difference(title, over, intervals))
    return differences


def _get_intervals(row: Row) -> dict[str, Interval]:
    """Returns the differences to the segmenter, by title of the measure."""
    mean_iou = {"mean IoU": Interval(row.gain, row.gain_low, row.gain_high)}
    return mean_iou | {TITLES[name]: Interval(*x[1:]) for name, x in row.measures}


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
        controls = [over for over in CONTROLS.values() if over in own]
        told = [own[SEGMENTER]]  # the best damped step may be a full reconstruction
        if gain.low <= 0 or not controls:
            sentences.append(
                f"{model} {_judge(gain)} {SEGMENTER}: "
                f"{_format_interval(gain)} points of mean IoU."
            )
            if controls:
                continue
        else:
            gains = {over: own[over]["mean IoU"] for over in controls}
            beats = all(gain.low > 0 for gain in gains.values())
            verdict = "beats" if beats else "does not clearly beat"
            listed = " and ".join(
                f"{_format_interval(gain)} points of mean IoU over {over}"
                for over, gain in gains.items()
            )
            sentences.append(f"{model} {verdict} both controls by iterating: {listed}.")
        for over, found in own.items():
            if found not in told:
                told.append(found)
                texts = (f"{name} {_format_interval(x)}" for name, x in found.items())
                sentences.append(f"{model} over {over}: {', '.join(texts)}.")
    return sentences


def _judge(gain: Interval) -> str:
    if gain.low > 0:
        return "improves on"
    return "is worse than" if gain.high < 0 else "does not clearly improve on"


def _format_interval(interval: Interval) -> str:
    gain, low, high = (format_gain(value, 2) for value in interval)
    return f"{gain} [{low}, {high}]"


def write_results(report: Report, directory: pathlib.Path) -> None:
    """Writes table.{csv,json,md}, and Figures 3 and 4 to figures/."""
    rows, classes = report.rows, report.dataset.classes
    differences = [
        {"model": d.model, "over": d.over} | d.intervals for d in report.differences
    ]
    write_table(rows, classes, directory, report.notes, report.provenance, differences)
    _plot_curves(report.refiners, directory / "figures")
    images = report.figure_images
    predictions = {rows[0].model: [image.segmented for image in images]}
    for refiner in (report.refiners[0], report.refiners[-1]):  # the paper's CRF, DAE(y)
        predictions[refiner.title] = [choose_map(image, refiner) for image in images]
    figure = plot_segmentations(
        [image.record.image for image in images],
        [image.record.label for image in images],
        predictions,
        classes,
        report.dataset.colors,
    )
    save_figure(figure, directory / "figures" / "figure3.png")
    print_once(
        format_console_table(rows, classes),
        "",
        *report.notes,
        "",
        f"Table and figures written to {directory}",
    )


def choose_map(image: ImageResult, refiner: RefinerResult) -> UInt8[np.ndarray, "h w"]:
    """Returns the label map for the chosen step size and number of iterations."""
    packed = image.refined[refiner.name][refiner.step_sizes.index(refiner.step_size)]
    return unpack_maps(packed, image.segmented)[refiner.num_iterations]


def _plot_curves(refiners: Sequence[RefinerResult], directory: pathlib.Path) -> None:
    """Draws Figure 4 for every refiner with several iterations.

    As in the paper, the figure of a refiner with controls (a DAE) also shows those
    without (the CRF), if they start from the same y.
    """
    curves = {
        refiner.name: join_curves(refiner.curve, refiner.test) for refiner in refiners
    }
    iterating = [r for r in refiners if curves[r.name].test["mean_iou"].size > 2]
    others = {}
    for refiner in iterating:
        if refiner.damped_step_size is None and not refiner.follows:
            validation, test = (part["mean_iou"] for part in curves[refiner.name])
            chosen = refiner.step_sizes.index(refiner.step_size)
            others[refiner.title] = (validation[chosen], test)
    for refiner in iterating:
        figure = plot_iterations(
            curves[refiner.name],
            refiner.step_sizes,
            refiner.step_size,
            refiner.num_iterations,
            title=refiner.title,
            others={} if refiner.damped_step_size is None else others,
            start=refiner.follows or "segmenter alone",
        )
        save_figure(figure, directory / f"figure4_{refiner.name}.png")


def choose_images(
    plain: Int[np.ndarray, "n k k"], refiner: RefinerResult, num_images: int
) -> list[int]:
    """Chooses test images at equal steps of rank by gain in correct pixels.

    The first has the largest gain and the last the largest loss, so that failures are
    shown too; three images are the best, the median and the worst.
    """
    refined = refiner.test["refined"]
    gained = np.einsum("nkk->n", refined - plain)
    order = np.argsort(-gained, kind="stable")  # most gained first
    positions = np.linspace(0, len(order) - 1, min(num_images, len(order)))
    return [int(order[int(position)]) for position in positions]
