"""What --mode=check_data prints."""

from collections import Counter
from collections.abc import Mapping, Sequence

from iterinf.data.census import SplitCensus, list_warnings
from iterinf.data.frequencies import compute_median_frequency_weights
from iterinf.report.table import align

_MAX_SIZES = 4  # as many as a line holds


def format_census(census: Mapping[str, SplitCensus], classes: Sequence[str]) -> str:
    """Formats sizes by split, classes by split, and what should be known.

    Args:
      census: by name of the split: train, validation, test.
      classes: k names.
    """
    splits = [["split", "images", "sizes"]]
    for name, counted in census.items():
        count = str(counted.sizes.total())
        splits.append([name, count, _format_sizes(counted.sizes)])
    weights = compute_median_frequency_weights(census["train"].pixels[:, :-1])
    shares = [counted.shares for counted in census.values()]
    images = [counted.num_images_with for counted in census.values()]
    lines = [
        ["class", *(f"% {name}" for name in census), *(f"in {name}" for name in census)]
    ]
    lines[0].append("weight")
    for index, name in enumerate([*classes, "void"]):
        is_void = index == len(classes)
        lines.append(
            [
                name,
                *(
                    _format_share(counted.void_share if is_void else share[index])
                    for counted, share in zip(census.values(), shares, strict=True)
                ),
                *(str(shown[index]) for shown in images),
                "-" if is_void else f"{weights[index]:.2f}",
            ]
        )
    parts = [
        align(splits, left=3),
        align(lines, left=1),
        "Per cent of the labelled pixels (void: of all pixels), and how many images "
        "show the class.\nweight: what class_weights='median_frequency' gives its "
        "pixels in the segmenter's loss.",
    ]
    warnings = list_warnings(census, classes)
    if warnings:
        parts.append("\n".join(["To be known:", *(f"- {line}" for line in warnings)]))
    return "\n\n".join(parts)


def _format_sizes(sizes: Counter[tuple[int, int]]) -> str:
    """Height x width, the most frequent first, with counts where there are several."""
    listed = [f"{height}x{width}" for height, width in sizes]
    if len(sizes) > 1:
        listed = [
            f"{height}x{width} ({count})"
            for (height, width), count in sizes.most_common(_MAX_SIZES)
        ]
    if len(sizes) > _MAX_SIZES:
        listed.append(f"{len(sizes) - _MAX_SIZES} other sizes")
    return ", ".join(listed)


def _format_share(share: float) -> str:
    """Per cent; what would round to zero is told from zero."""
    if 0 < share < 0.00005:
        return "<0.01"
    return f"{100 * share:.2f}" if share else "-"
