"""Figure legends of class colours."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer, UInt8
from matplotlib.patches import Patch

MAX_CLASSES = 30


def list_classes(
    maps: Sequence[Integer[np.ndarray, "_ _"]],
    classes: Sequence[str],
    colors: UInt8[np.ndarray, "colors 3"],
) -> list[Patch]:
    """Creates legend entries of void and of all, or the most frequent, classes.

    Args:
      maps: The label maps in the figure; k and above are void.
      classes: The k class names.
      colors: The RGB colours of the k classes and void.
    """
    chosen = np.arange(len(classes))
    if len(classes) > MAX_CLASSES:
        pixels = _count_pixels(maps, len(classes))
        most = np.argsort(-pixels, kind="stable")[:MAX_CLASSES]
        chosen = np.sort(most[pixels[most] > 0])
    entries = make_patches([classes[int(i)] for i in chosen], colors[chosen])
    entries += make_patches(["void"], colors[-1:])
    num_others = len(classes) - len(chosen)
    if num_others:
        label = f"{num_others} other classes"
        entries.append(Patch(facecolor="none", edgecolor="none", label=label))
    return entries


def count_columns(entries: Sequence[Patch], width: float) -> int:
    """Returns the number of 9-point legend columns that fit into a width in inches."""
    longest = max(len(str(entry.get_label())) for entry in entries)
    column = 0.55 + 0.075 * longest
    return max(1, min(len(entries), int(width / column)))


def make_patches(
    names: Sequence[str], colors: Integer[np.ndarray, "n 3"]
) -> list[Patch]:
    """Creates legend entries with a thin edge, so that white ones are visible."""
    return [
        Patch(facecolor=color / 255, edgecolor="0.3", label=name)
        for name, color in zip(names, colors, strict=True)
    ]


def _count_pixels(
    maps: Sequence[Integer[np.ndarray, "_ _"]], num_classes: int
) -> Int[np.ndarray, " k"]:
    counts = np.zeros(num_classes, int)
    for labels in maps:
        known = labels[labels < num_classes]
        counts += np.bincount(known.ravel(), minlength=num_classes)
    return counts
