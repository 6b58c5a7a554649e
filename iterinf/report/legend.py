"""Figure legends of class colours."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.patches import Patch

_MAX_CLASSES = 30


def list_classes(
    maps: Iterable[Integer[np.ndarray, "_ _"]],
    classes: Sequence[str],
    colors: UInt8[np.ndarray, "colors 3"],
) -> list[Patch]:
    """Creates legend entries of void and of all, or the most frequent, classes.

    Args:
      maps: The label maps in the figure; k and above are void.
      classes: The k class names.
      colors: The RGB colours of the k classes and void.
    """
    k = len(classes)
    pixels = np.zeros(k + 1, int)
    for labels in maps:
        pixels += np.bincount(np.minimum(labels, k).ravel(), minlength=k + 1)
    chosen = np.arange(k)
    if k > _MAX_CLASSES:
        most = np.argsort(-pixels[:k], kind="stable")[:_MAX_CLASSES]
        chosen = np.sort(most[pixels[most] > 0])
    names = [*(classes[int(i)] for i in chosen), "void"]
    entries = make_patches(names, colors[[*chosen, -1]])
    if len(chosen) < k:
        label = f"{k - len(chosen)} other classes"
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
