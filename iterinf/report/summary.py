"""The data set statistics printed by --mode=check_data."""

from collections import Counter
from collections.abc import Mapping, Sequence

from iterinf.data.frequencies import compute_median_frequency_weights
from iterinf.data.summary import SplitSummary, list_warnings
from iterinf.report.table import align

_MAX_SIZES = 4  # listed per split


def format_summaries(
    summaries: Mapping[str, SplitSummary], classes: Sequence[str]
) -> str:
    """Formats image sizes and class frequencies per split, and warnings."""
    splits = [["split", "images", "sizes"]]
    for name, counted in summaries.items():
        count = str(counted.sizes.total())
        splits.append([name, count, _format_sizes(counted.sizes)])
    columns = [["class", *classes, "void"]]
    for name, counted in summaries.items():
        shares = map(_format_share, (*counted.shares, counted.void_share))
        columns.append([f"% {name}", *shares])
    for name, counted in summaries.items():
        columns.append([f"in {name}", *map(str, counted.num_images_with)])
    weights = compute_median_frequency_weights(summaries["train"].pixels[:, :-1])
    columns.append(["weight", *(f"{weight:.2f}" for weight in weights), "-"])
    lines = list(zip(*columns, strict=True))
    parts = [
        align(splits, left=3),
        align(lines, left=1),
        "Class shares are in per cent of the labelled pixels (void: of all pixels); "
        "'in' counts the images that contain the class.\nweight: the class's weight in "
        "the segmenter's loss with class_weights='median_frequency'.",
    ]
    warnings = list_warnings(summaries, classes)
    if warnings:
        parts.append("\n".join(["Warnings:", *(f"- {line}" for line in warnings)]))
    return "\n\n".join(parts)


def _format_sizes(sizes: Counter[tuple[int, int]]) -> str:
    """Formats heights and widths, most frequent first, with counts if several."""
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
    """Formats a share in per cent; positive shares never round to zero."""
    if 0 < share < 0.00005:
        return "<0.01"
    return f"{100 * share:.2f}" if share else "-"
