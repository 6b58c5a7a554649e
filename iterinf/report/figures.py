"""The paper's Figures 3 and 4, drawn without pyplot and its global state."""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from iterinf.report.changes import (
    CORRECTED,
    DEGRADED,
    Box,
    compute_changes,
    find_largest_changes,
)
from iterinf.report.curves import Curves
from iterinf.report.drawing import dim
from iterinf.report.legend import count_columns, list_classes, make_patches
from iterinf.runtime.files import write_atomically

# Green and red also differ in lightness, for those who do not tell them apart.
_CORRECTED_COLOR = (90, 230, 120)
_DEGRADED_COLOR = (210, 30, 40)
_UNITS = {
    "mean_iou": "mean IoU (%)",
    "boundary_f1": "boundary F1 (%)",
    "nll": "NLL (nats per pixel)",
    "fragmentation": "fragmentation",
}
_OTHER_COLORS = ("tab:red", "tab:orange", "tab:brown", "tab:pink")


def plot_iterations(
    curves: Curves,
    step_sizes: Sequence[float],
    step_size: float,
    num_iterations: int,
    *,
    title: str,
    others: Mapping[str, tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]],
    start: str,
) -> Figure:
    """Draws measures against iterations (the paper's Figure 4).

    Left: validation, a line per step size, the choice marked. Right: test at the chosen
    step size. Below: NLL and fragmentation on test. Where step sizes that fail would
    flatten the rest, the panels on the left are cut off below.

    Args:
      curves: The measures of the refiner.
      step_sizes: The s step sizes.
      step_size: The chosen one of them.
      num_iterations: The chosen number of iterations.
      title: The title of the figure.
      others: Mean IoU of other refiners on validation and test, by title; dashed.
      start: A description of the values after 0 iterations.
    """
    num_rows = len(curves.validation) + 1
    figure = Figure(figsize=(10.4, 1.0 + 3.4 * num_rows), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(num_rows, 2)
    for (name, pair), color in zip(others.items(), _OTHER_COLORS, strict=False):
        for axis, curve in zip(axes[0], pair, strict=True):
            style = {"color": color, "linewidth": 1.8, "zorder": 3}
            axis.plot(100 * curve, "--", label=name, **style)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(step_sizes)))
    chosen = step_sizes.index(step_size)
    for (left, right), name in zip(axes[:-1], curves.validation, strict=True):
        validation, test = (100 * part[name] for part in curves)
        for i, color in enumerate(colors):
            label = f"{step_sizes[i]:g}" + (" (chosen)" if i == chosen else "")
            _plot_curve(left, validation[i], color, label, is_chosen=i == chosen)
        _plot_curve(right, test, colors[chosen], is_chosen=True)
        _cut_below(left, validation)
        for axis, curve in ((left, validation[chosen]), (right, test)):
            _label_axes(axis, _UNITS[name], num_iterations)
            _mark_choice(axis, curve, num_iterations, start)
    axes[0, 0].set_title("validation: the choice is made here", fontsize=11)
    axes[0, 1].set_title(
        f"test: not used for any choice\n(step size {step_size:g})", fontsize=11
    )
    for axis, name in zip(axes[-1], ("nll", "fragmentation"), strict=True):
        _plot_curve(axis, curves.test[name], colors[chosen], is_chosen=True)
        _label_axes(axis, f"{_UNITS[name]}, test", num_iterations)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        title="step size",
        loc="outside lower center",
        ncols=min(len(step_sizes), 8),
    )
    return figure


def _plot_curve(
    axis: Axes,
    curve: Float[np.ndarray, " p"],
    color: Float[np.ndarray, "4"],
    label: str = "",
    *,
    is_chosen: bool,
) -> None:
    """Plots a line; a thick one on top for the chosen step size."""
    width, order = (2.8, 4) if is_chosen else (1.3, 3)
    axis.plot(curve, color=color, linewidth=width, zorder=order, label=label)


def _label_axes(axis: Axes, unit: str, num_iterations: int) -> None:
    """Labels the axes, and marks the chosen number of iterations."""
    axis.axvline(num_iterations, color="0.4", linestyle=":", linewidth=1)
    axis.set_xlabel(f"iterations (dotted: {num_iterations}, the choice)")
    axis.set_ylabel(unit)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def _mark_choice(
    axis: Axes, curve: Float[np.ndarray, " p"], num_iterations: int, start: str
) -> None:
    """Marks the value after the chosen iterations, and after none."""
    axis.margins(y=0.12)
    axis.axhline(curve[0], color="0.4", linestyle="--", linewidth=1)
    value = curve[num_iterations]
    axis.plot(num_iterations, value, "o", color="black", mfc="white", ms=9, zorder=5)
    style: dict[str, Any] = {
        "textcoords": "offset points",
        "path_effects": [withStroke(linewidth=3, foreground="white")],
        "zorder": 6,
    }
    axis.annotate(
        f"{value:.1f}", (num_iterations, value), xytext=(0, 9), ha="center", **style
    )
    place = (len(curve) - 1, curve[0])
    axis.annotate(
        f"{start} {curve[0]:.1f}", place, xytext=(0, 3), ha="right", fontsize=8, **style
    )


def _cut_below(axis: Axes, curves: Float[np.ndarray, "s p"]) -> None:
    """Limits the panel to three times the range from the segmenter to the best."""
    best, start, lowest = curves.max(), curves[0, 0], curves.min()
    shown = max(best - start, 0.5)
    if lowest < start - 2 * shown:
        axis.set_ylim(start - 2 * shown, best + 0.5 * shown)
        text, place = f"cut off below; lowest {lowest:.1f}", axis.transAxes
        axis.text(0.98, 0.02, text, transform=place, ha="right", fontsize=8)


def plot_segmentations(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    labels: Sequence[Integer[np.ndarray, "h w"]],
    predictions: Mapping[str, Sequence[Integer[np.ndarray, "h w"]]],
    classes: Sequence[str],
    colors: UInt8[np.ndarray, "colors 3"],
) -> Figure:
    """Draws images, truth, predictions and the last refiner's changes (Figure 3).

    One row per image. The last column shows the image in dim grey, corrected pixels in
    green and degraded ones in red; white boxes mark the largest changes in the whole
    row.

    Args:
      images: The images, RGB.
      labels: The label maps; k and above are void.
      predictions: The label maps by model: the segmenter first, then refiners.
      classes: The k class names.
      colors: The RGB colours of the k classes and void.
    """
    names = list(predictions)
    titles = ["image", "truth", *names, f"changes by {names[-1]}"]
    height, width = labels[0].shape
    panel_width = 2.6
    row_height = (panel_width + 0.1) * height / width
    size = (panel_width * len(titles), row_height * len(images))
    figure = Figure(figsize=(size[0], size[1] + 1.1), layout="constrained")
    axes = figure.subplots(len(images), len(titles), squeeze=False)
    for title, axis in zip(titles, axes[0], strict=True):
        axis.set_title(textwrap.fill(title, 30), fontsize=10)
    for i, row in enumerate(axes):
        maps = [labels[i], *(predictions[name][i] for name in names)]
        changes = compute_changes(maps[0], maps[1], maps[-1], len(classes))
        boxes = find_largest_changes(changes)
        panels = [colors[np.minimum(m, len(classes))] for m in maps]
        panels = [images[i], *panels, _paint_changes(images[i], changes)]
        for axis, panel in zip(row, panels, strict=True):
            _show_panel(axis, panel, boxes)
        corrected, degraded = (
            100 * (changes == kind).mean() for kind in (CORRECTED, DEGRADED)
        )
        row[-1].set_xlabel(
            f"corrected {corrected:.1f}%, degraded {degraded:.1f}% of the pixels",
            fontsize=8,
        )
    maps = [*labels, *itertools.chain(*predictions.values())]
    handles = list_classes(maps, classes, colors)
    handles += make_patches(
        ["corrected", "degraded"], np.array([_CORRECTED_COLOR, _DEGRADED_COLOR])
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(count_columns(handles, size[0]), 2 + len(titles)),
        fontsize=9,
    )
    return figure


def _paint_changes(
    image: UInt8[np.ndarray, "h w 3"], changes: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Paints corrected pixels green and degraded ones red on the image in dim grey."""
    painted = dim(image)
    painted[changes == CORRECTED] = _CORRECTED_COLOR
    painted[changes == DEGRADED] = _DEGRADED_COLOR
    return painted


def _show_panel(
    axis: Axes, panel: UInt8[np.ndarray, "h w 3"], boxes: Sequence[Box]
) -> None:
    """Shows an image with white boxes, without ticks."""
    axis.imshow(panel, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    style: dict[str, Any] = {
        "fill": False,
        "edgecolor": "white",
        "linewidth": 1.5,
        "path_effects": [withStroke(linewidth=3, foreground="black")],
    }
    for top, left, height, width in boxes:
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, **style))


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG of 150 dots per inch, atomically.

    Raises:
      UserError: If writing fails.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomically({path: content.getvalue()})
