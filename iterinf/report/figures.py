"""The paper's Figures 3 and 4, drawn without pyplot and its global state."""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
from iterinf.report.drawing import dim
from iterinf.report.legend import count_columns, list_classes, make_patches
from iterinf.runtime.files import write_atomically

# Green and red also differ in lightness, for those who do not tell them apart.
_CORRECTED_COLOR = (90, 230, 120)
_DEGRADED_COLOR = (210, 30, 40)
_OTHER_COLORS = ("tab:red", "tab:orange", "tab:brown", "tab:pink")


def plot_iterations(
    validation_mean_iou: Float[np.ndarray, "s p"],
    step_sizes: Sequence[float],
    selected_step_size: float,
    selected_num_iterations: int,
    test_mean_iou: Float[np.ndarray, " p"] | None,
    *,
    title: str,
    boundary_f1: tuple[Float[np.ndarray, "s p"], Float[np.ndarray, " _"]] | None = None,
    test_measures: Mapping[str, Float[np.ndarray, " p"]] = MappingProxyType({}),
    others: Mapping[
        str, tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]
    ] = MappingProxyType({}),
    start: str = "segmenter alone",
) -> Figure:
    """Draws mean IoU against iterations (the paper's Figure 4), boundary F1 below.

    Left: validation, a line per step size, the choice marked. Right: test at the chosen
    step size. Where step sizes that fail would flatten the rest, the left panels are
    cut below and say so.

    Args:
      validation_mean_iou: fractions after 0..t iterations, p = t + 1.
      step_sizes: s of them.
      selected_step_size: one of `step_sizes`.
      selected_num_iterations: 1..t.
      test_mean_iou: fractions at the chosen step size; None leaves that panel out.
      title: of the figure.
      boundary_f1: the same of boundary F1, on validation and test; None: no such row.
      test_measures: up to two curves on test by what they show, in a last row.
      others: dashed curves of mean IoU to compare with, of validation and test, by
        title.
      start: what the curves show after 0 iterations.
    """
    num_columns = 1 if test_mean_iou is None else 2
    rows = [(validation_mean_iou, test_mean_iou, "mean IoU (%)")]
    if boundary_f1 is not None:
        rows.append((*boundary_f1, "boundary F1 (%)"))
    num_rows = len(rows) + bool(test_measures)
    size = (1.2 + 4.6 * num_columns, 1.0 + 3.4 * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    selected = int(np.argmin(np.abs(np.asarray(step_sizes) - selected_step_size)))
    for i, row in enumerate(rows):
        shown = list(axes[i])
        if i == 0:
            _plot_others(shown, others)
        _plot_row(shown, *row, step_sizes, selected, selected_num_iterations, start)
    axes[0, 0].set_title("validation: the choice is made here", fontsize=11)
    if num_columns > 1:
        axes[0, 1].set_title(
            f"test: not used for any choice\n(step size {selected_step_size:g})",
            fontsize=11,
        )
    for axis, (unit, curve) in zip(axes[-1], test_measures.items(), strict=False):
        color = _color_step_sizes(len(step_sizes))[selected]
        _plot_measure(axis, unit, curve, color, selected_num_iterations)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        title="step size",
        loc="outside lower center",
        ncols=min(len(step_sizes), 4 * num_columns),
    )
    return figure


def _color_step_sizes(number: int) -> Float[np.ndarray, "s 4"]:
    return mpl.colormaps["viridis"](np.linspace(0, 0.9, number))


def _plot_row(
    axes: Sequence[Axes],
    validation: Float[np.ndarray, "s p"],
    test: Float[np.ndarray, " _"] | None,
    unit: str,
    step_sizes: Sequence[float],
    selected: int,
    num_iterations: int,
    start: str,
) -> None:
    """A measure on validation by step size, and on test at the chosen one."""
    colors = _color_step_sizes(len(step_sizes))
    for i, step_size in enumerate(step_sizes):
        chosen = i == selected
        label = f"{step_size:g}" + (" (chosen)" if chosen else "")
        _plot_curve(axes[0], validation[i], colors[i], chosen=chosen, label=label)
    _cut_below(axes[0], 100 * validation)
    _finish_panel(axes[0], unit, validation[selected], num_iterations, start)
    if test is not None and len(axes) > 1:
        _plot_curve(axes[1], test, colors[selected], chosen=True)
        _finish_panel(axes[1], unit, test, num_iterations, start)


def _plot_measure(
    axis: Axes,
    unit: str,
    curve: Float[np.ndarray, " p"],
    color: Float[np.ndarray, "4"],
    num_iterations: int,
) -> None:
    """A measure of test that validation does not have."""
    axis.plot(curve, color=color, linewidth=2.8)
    axis.axvline(num_iterations, color="0.4", linestyle=":", linewidth=1)
    axis.set_xlabel(f"iterations (dotted: {num_iterations}, the choice)")
    axis.set_ylabel(f"{unit}, test")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def _plot_others(
    axes: Sequence[Axes],
    others: Mapping[str, tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]],
) -> None:
    """Dashed curves of other refiners, on validation and on test."""
    for (name, curves), color in zip(others.items(), _OTHER_COLORS, strict=False):
        for axis, curve in zip(axes, curves, strict=False):
            axis.plot(
                100 * curve, "--", color=color, linewidth=1.8, zorder=3, label=name
            )


def plot_segmentations(
    images: UInt8[np.ndarray, "n h w 3"],
    labels: Integer[np.ndarray, "n h w"],
    predictions: Mapping[str, Integer[np.ndarray, "n h w"]],
    classes: Sequence[str],
    colors: UInt8[np.ndarray, "colors 3"],
) -> Figure:
    """Draws images, truth, predictions and the last refiner's changes (Figure 3).

    One row per image. The last column shows the image in dim grey, corrected pixels in
    green and degraded ones in red; white boxes mark the largest changes in the whole
    row.

    Args:
      images: RGB.
      labels: classes 0..k-1; k and above are void.
      predictions: class maps by model: the segmenter first, then refiners.
      classes: k names.
      colors: RGB a class, k + 1 of them; the last is void.
    """
    names = list(predictions)
    titles = ["image", "truth", *names]
    if len(names) > 1:
        titles.append(f"changes by {names[-1]}")
    count, height, width = labels.shape
    panel_width = 2.6
    size = (panel_width * len(titles), (panel_width + 0.1) * height / width * count)
    figure = Figure(figsize=(size[0], size[1] + 1.1), layout="constrained")
    axes = figure.subplots(count, len(titles), squeeze=False)
    for title, axis in zip(titles, axes[0], strict=True):
        axis.set_title(textwrap.fill(title, 30), fontsize=10)
    for index in range(count):
        maps = [labels[index], *(predictions[name][index] for name in names)]
        panels = [images[index], *(colors[np.minimum(m, len(classes))] for m in maps)]
        boxes: list[Box] = []
        if len(names) > 1:
            changes = compute_changes(maps[0], maps[1], maps[-1], len(classes))
            boxes = find_largest_changes(changes)
            panels.append(_paint_changes(images[index], changes))
            axes[index, -1].set_xlabel(_describe_changes(changes), fontsize=8)
        for axis, panel in zip(axes[index], panels, strict=True):
            _show_panel(axis, panel, boxes)
    handles = list_classes(
        [*labels, *np.concatenate(list(predictions.values()))], classes, colors
    )
    if len(names) > 1:
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


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG of 150 dots per inch, whole or not at all.

    Raises:
      UserError: if writing fails.
    """
    content = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png", dpi=150)
    write_atomically({Path(path): content.getvalue()})


def _plot_curve(
    axis: Axes,
    curve: Float[np.ndarray, " p"],
    color: Any,
    *,
    chosen: bool,
    label: str = "",
) -> None:
    """A line in per cent; a thick one on top where it is the chosen step size."""
    width, order = (2.8, 4) if chosen else (1.3, 3)
    axis.plot(100 * curve, color=color, linewidth=width, zorder=order, label=label)


def _cut_below(axis: Axes, curves: Float[np.ndarray, "s p"]) -> None:
    """Limits the panel to three times the range from the segmenter to the best."""
    best, start, lowest = curves.max(), curves[0, 0], curves.min()
    shown = max(best - start, 0.5)
    if lowest < start - 2 * shown:
        axis.set_ylim(start - 2 * shown, best + 0.5 * shown)
        axis.text(
            0.98,
            0.02,
            f"cut off below; lowest {lowest:.1f}",
            transform=axis.transAxes,
            horizontalalignment="right",
            fontsize=8,
        )


def _finish_panel(
    axis: Axes,
    unit: str,
    curve: Float[np.ndarray, " p"],
    chosen: int,
    start: str,
) -> None:
    """Marks the start and the choice; labels the axes."""
    axis.axhline(100 * curve[0], color="0.4", linestyle="--", linewidth=1, zorder=2)
    axis.axvline(chosen, color="0.4", linestyle=":", linewidth=1, zorder=2)
    axis.plot(
        [chosen],
        [100 * curve[chosen]],
        marker="o",
        markersize=9,
        markerfacecolor="white",
        markeredgecolor="black",
        linestyle="none",
        zorder=5,
    )
    axis.set_xlabel(f"iterations (dotted: {chosen}, the choice)")
    axis.set_ylabel(unit)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.margins(y=0.12)
    halo = [withStroke(linewidth=3, foreground="white")]
    last = len(curve) - 1
    axis.annotate(
        f"{100 * curve[chosen]:.1f}",
        (chosen, 100 * curve[chosen]),
        xytext=(0, 9),
        textcoords="offset points",
        horizontalalignment="center",
        path_effects=halo,
        zorder=6,
    )
    axis.annotate(
        f"{start} {100 * curve[0]:.1f}",
        (last, 100 * curve[0]),
        xytext=(0, 3),
        textcoords="offset points",
        horizontalalignment="right",
        fontsize=8,
        path_effects=halo,
        zorder=6,
    )


def _paint_changes(
    image: UInt8[np.ndarray, "h w 3"], changes: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Corrected pixels green, degraded ones red, the rest of the image in dim grey."""
    painted = dim(image)
    painted[changes == CORRECTED] = _CORRECTED_COLOR
    painted[changes == DEGRADED] = _DEGRADED_COLOR
    return painted


def _describe_changes(changes: UInt8[np.ndarray, "h w"]) -> str:
    """Shares of the image."""
    corrected, degraded = (
        100 * (changes == kind).mean() for kind in (CORRECTED, DEGRADED)
    )
    return f"corrected {corrected:.1f}%, degraded {degraded:.1f}% of the pixels"


def _show_panel(
    axis: Axes, panel: UInt8[np.ndarray, "h w 3"], boxes: Sequence[Box]
) -> None:
    """Shows an image with its white boxes, without ticks."""
    axis.imshow(panel, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    outline = [withStroke(linewidth=3, foreground="black")]
    for top, left, height, width in boxes:
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                width,
                height,
                fill=False,
                edgecolor="white",
                linewidth=1.5,
                path_effects=outline,
            )
        )
