"""Draws docs/method.png: what is computed once per image, and what in the loop.

python -m launch.method_figure
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from iterinf.report.figures import save_figure

_OUTPUT = Path(__file__).parent.parent / "docs" / "method.png"
_ONCE, _LOOP = "#e8eef7", "#fdf0d5"
Point = tuple[float, float]


def main() -> None:
    """Draws boxes and arrows on a canvas of 10 x 3.6."""
    figure = Figure(figsize=(10, 3.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 3.6)
    axes.set_axis_off()
    _draw_frame(axes, (0.15, 0.2, 4.95, 3.2), "once per image", _ONCE)
    _draw_frame(axes, (5.4, 0.2, 4.45, 3.2), "in every iteration", _LOOP)
    _draw_box(axes, (0.85, 1.5), "image x", 0.9)
    _draw_box(axes, (2.45, 1.5), "segmenter", 1.3)
    _draw_box(axes, (4.2, 0.8), "condition\n(y, h, x)", 1.3)
    _draw_box(axes, (6.5, 0.8), "reconstruct\nr(y, condition)", 1.7)
    _draw_box(axes, (6.5, 2.4), "y", 0.6)
    _draw_box(axes, (8.8, 2.4), "step:\ny + $\\epsilon$ (r $-$ y)", 1.6)
    _draw_arrow(axes, (1.3, 1.5), (1.8, 1.5))
    label = "y: class probabilities"
    _draw_arrow(axes, (3.1, 1.7), (6.2, 2.4), label, bend=-0.08, shift=(-1.0, 0.25))
    _draw_arrow(axes, (3.1, 1.3), (3.55, 0.85), "h: features", shift=(0.45, 0.2))
    _draw_arrow(axes, (4.85, 0.8), (5.65, 0.8))
    _draw_arrow(axes, (6.5, 2.1), (6.5, 1.15))
    _draw_arrow(axes, (7.35, 0.8), (8.8, 2.05), "r", bend=0.25, shift=(0.45, -0.2))
    _draw_arrow(axes, (6.8, 2.4), (8.0, 2.4))
    _draw_arrow(axes, (8.8, 2.75), (6.5, 2.7), "the next y", bend=0.35, shift=(0, 0.5))
    save_figure(figure, _OUTPUT)


def _draw_frame(
    axes: Axes, box: tuple[float, float, float, float], title: str, color: str
) -> None:
    left, bottom, width, height = box
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.12",
        "edgecolor": "none",
    }
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, facecolor=color, **style)
    )
    axes.text(left + 0.12, bottom + height - 0.27, title, fontsize=10, color="0.35")


def _draw_box(axes: Axes, center: Point, text: str, width: float) -> None:
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.08",
        "edgecolor": "0.25",
    }
    corner = (center[0] - width / 2, center[1] - 0.33)
    axes.add_patch(FancyBboxPatch(corner, width, 0.66, facecolor="white", **style))
    axes.text(*center, text, fontsize=11, ha="center", va="center")


def _draw_arrow(
    axes: Axes,
    start: Point,
    end: Point,
    label: str = "",
    *,
    bend: float = 0.0,
    shift: Point = (0, 0.12),
) -> None:
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=14,
        color="0.25",
        connectionstyle=f"arc3,rad={bend}",
    )
    axes.add_patch(arrow)
    middle = ((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1])
    axes.text(*middle, label, fontsize=9, ha="center", color="0.25")


if __name__ == "__main__":
    main()
