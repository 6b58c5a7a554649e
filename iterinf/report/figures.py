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
from jaxtyping import Float, Int, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from iterinf.report.legend import count_columns, list_classes, make_patches
from iterinf.report.pictures import dim
from iterinf.runtime.files import write_atomically

UNCHANGED, MENDED, SPOILED, NEUTRAL = range(4)
# Green and red also differ in lightness, for those who do not tell them apart.
_MENDED_COLOR = (90, 230, 120)
_SPOILED_COLOR = (210, 30, 40)
_OTHER_COLORS = ("tab:red", "tab:orange", "tab:brown", "tab:pink")
_GRID_CELLS = 48  # cells along the longer side, where regions of change are sought

Box = tuple[int, int, int, int]  # top, left, height, width; pixels


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
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(step_sizes)))
    panel_titles = (
        "validation: the choice is made here",
        f"test: not used for any choice\n(step size {selected_step_size:g})",
    )
    for i, (validation, test, unit) in enumerate(rows):
        row = list(axes[i])
        for index, step_size in enumerate(step_sizes):
            chosen = index == selected
            _plot_curve(
                row[0],
                validation[index],
                colors[index],
                chosen=chosen,
                label=f"{step_size:g}" + (" (chosen)" if chosen else ""),
            )
        if i == 0:
            _plot_others(row, others)
        _cut_below(row[0], 100 * validation)
        curves = [validation[selected]]
        if test is not None and num_columns > 1:
            _plot_curve(row[1], test, colors[selected], chosen=True)
            curves.append(test)
        for axis, panel_title, curve in zip(row, panel_titles, curves, strict=False):
            heading = "" if i else panel_title
            _finish_panel(axis, heading, unit, curve, selected_num_iterations, start)
    for axis, (unit, curve) in zip(axes[-1], test_measures.items(), strict=False):
        axis.plot(curve, color=colors[selected], linewidth=2.8)
        axis.axvline(selected_num_iterations, color="0.4", linestyle=":", linewidth=1)
        axis.set_xlabel(f"iterations (dotted: {selected_num_iterations}, the choice)")
        axis.set_ylabel(f"{unit}, test")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        title="step size",
        loc="outside lower center",
        ncols=min(len(step_sizes), 4 * num_columns),
    )
    return figure


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


def compute_changes(
    label: Integer[np.ndarray, "h w"],
    before: Integer[np.ndarray, "h w"],
    after: Integer[np.ndarray, "h w"],
    num_classes: int,
) -> UInt8[np.ndarray, "h w"]:
    """Maps what a refiner did to each pixel.

    Args:
      label: the truth; `num_classes` and above are void.
      before: classes predicted by the segmenter.
      after: classes predicted by the refiner.
      num_classes: k.

    Returns:
      UNCHANGED (0; void pixels too), MENDED (1: wrong, now right), SPOILED (2: right,
      now wrong) or NEUTRAL (3: changed from one wrong class to another).
    """
    changes = np.full(label.shape, NEUTRAL, np.uint8)
    changes[after == label] = MENDED
    changes[before == label] = SPOILED
    changes[(before == after) | (label >= num_classes)] = UNCHANGED
    return changes


def find_largest_changes(
    changes: UInt8[np.ndarray, "h w"], num_boxes: int = 3
) -> list[Box]:
    """Finds the rectangles with most pixels mended or spoiled.

    On a grid of cells, cell i scores f_i - d / 2, where f_i is the changed fraction of
    it and d = sum(f^2) / sum(f), the density around a typical changed pixel. The
    rectangle with the highest sum, of at most half the image's height and width, is
    taken out and the next one sought in the rest, until a tenth of the first sum. A
    margin of one cell is added.

    Args:
      changes: as from `compute_changes`.
      num_boxes: the most to return.

    Returns:
      Boxes in pixels, largest change first; fewer where there is little to show.
    """
    height, width = changes.shape
    cell = -(-max(height, width) // _GRID_CELLS)
    changed = (changes == MENDED) | (changes == SPOILED)
    if not changed.any():
        return []
    padded = np.pad(changed.astype(float), ((0, -height % cell), (0, -width % cell)))
    rows, columns = (size // cell for size in padded.shape)
    density = padded.reshape(rows, cell, columns, cell).mean(axis=(1, 3))
    scores = density - (density**2).sum() / density.sum() / 2
    boxes: list[Box] = []
    largest = 0.0
    while len(boxes) < num_boxes:
        score, (top, bottom), (left, right) = _find_best_rectangle(scores)
        largest = max(largest, score)
        if score <= largest / 10:
            break
        scores[top:bottom, left:right] = -1.0  # the lowest that a cell can have
        first_row, first_column = max(top - 1, 0) * cell, max(left - 1, 0) * cell
        box_height = min((bottom + 1) * cell, height) - first_row
        box_width = min((right + 1) * cell, width) - first_column
        boxes.append((first_row, first_column, box_height, box_width))
    return boxes


def plot_segmentations(
    images: UInt8[np.ndarray, "n h w 3"],
    labels: Integer[np.ndarray, "n h w"],
    predictions: Mapping[str, Integer[np.ndarray, "n h w"]],
    classes: Sequence[str],
    colors: UInt8[np.ndarray, "colors 3"],
) -> Figure:
    """Draws images, truth, predictions and the last refiner's changes (Figure 3).

    A row an image. The last column shows the image in dim grey with mended pixels green
    and spoiled ones red; white boxes lie round the largest changes in the whole row.

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
            ["mended", "spoiled"], np.array([_MENDED_COLOR, _SPOILED_COLOR])
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
    """Limits the panel to three times the range between plain network and best."""
    best, plain, lowest = curves.max(), curves[0, 0], curves.min()
    shown = max(best - plain, 0.5)
    if lowest < plain - 2 * shown:
        axis.set_ylim(plain - 2 * shown, best + 0.5 * shown)
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
    title: str,
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
    axis.set_title(title, fontsize=11)
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


def _find_best_rectangle(
    scores: Float[np.ndarray, "r c"],
) -> tuple[float, tuple[int, int], tuple[int, int]]:
    """The sum, rows and columns (end exclusive) of the rectangle with highest sum."""
    table = np.pad(scores, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    tops, bottoms = _list_ranges(scores.shape[0])
    lefts, rights = _list_ranges(scores.shape[1])
    bands = table[bottoms] - table[tops]
    sums = bands[:, rights] - bands[:, lefts]
    band, span = np.unravel_index(sums.argmax(), sums.shape)
    return (
        float(sums[band, span]),
        (int(tops[band]), int(bottoms[band])),
        (int(lefts[span]), int(rights[span])),
    )


def _list_ranges(size: int) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Starts and ends of all ranges no longer than half of `size`."""
    starts, ends = np.triu_indices(size + 1, k=1)
    short = ends - starts <= max(size // 2, 1)
    return starts[short], ends[short]


def _paint_changes(
    image: UInt8[np.ndarray, "h w 3"], changes: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Mended pixels green, spoiled ones red, the rest of the image in dim grey."""
    painted = dim(image)
    painted[changes == MENDED] = _MENDED_COLOR
    painted[changes == SPOILED] = _SPOILED_COLOR
    return painted


def _describe_changes(changes: UInt8[np.ndarray, "h w"]) -> str:
    """Shares of the image."""
    mended, spoiled = (100 * (changes == kind).mean() for kind in (MENDED, SPOILED))
    return f"mended {mended:.1f}%, spoiled {spoiled:.1f}% of the pixels"


def _show_panel(
    axis: Axes, panel: UInt8[np.ndarray, "h w 3"], boxes: Sequence[Box]
) -> None:
    """Shows a picture with its white boxes, without ticks."""
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
