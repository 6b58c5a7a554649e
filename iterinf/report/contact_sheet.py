"""The contact sheet: images of each split beside their label maps."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from iterinf.data.dataset import Dataset, Record, Split
from iterinf.report.legend import count_columns, list_classes

_NUM_IMAGES = 12  # per split
_NUM_COLUMNS = 4  # pairs per row
_LENGTH = 240  # longer side of an image, in pixels
_GAP = 8  # between images, in pixels
_NAME_HEIGHT = 30  # space above a pair, in pixels
_MAX_NAME = 60  # characters
_WIDTH = 14.0  # width of the figure, in inches

Pixels = UInt8[np.ndarray, "_ _ 3"]


def plot_contact_sheet(dataset: Dataset) -> Figure:
    """Draws evenly spaced images of each split beside their painted label maps."""
    splits = dataset.splits
    records = {name: _pick_records(split) for name, split in splits.items()}
    sheets = {
        name: _arrange([_paint_pair(record, dataset.colors) for record in shown])
        for name, shown in records.items()
    }
    heights = [sheet.shape[0] for sheet in sheets.values()]
    widest = max(sheet.shape[1] for sheet in sheets.values())
    maps = [record.label for shown in records.values() for record in shown]
    entries = list_classes(maps, dataset.classes, dataset.colors)
    num_columns = count_columns(entries, _WIDTH)
    height = _WIDTH * sum(heights) / widest + 0.3 * len(splits)
    height += 0.25 * (2 + len(entries) // num_columns)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(len(splits), 1, height_ratios=heights)
    for (name, split), axis in zip(splits.items(), axes, strict=True):
        axis.imshow(sheets[name], interpolation="nearest")
        axis.set_xlim(0, widest)
        axis.set_anchor("NW")
        axis.set_axis_off()
        title = f"{name}: {len(records[name])} of {len(split)} images"
        axis.set_title(title, loc="left", fontsize=12)
        _write_names(axis, records[name], sheets[name])
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=num_columns,
        fontsize=9,
    )
    return figure


def _pick_records(split: Split) -> list[Record]:
    """Returns evenly spaced records, including the first and the last."""
    positions = np.linspace(0, len(split) - 1, min(_NUM_IMAGES, len(split)))
    return [split[int(position)] for position in positions]


def _paint_pair(record: Record, colors: UInt8[np.ndarray, "colors 3"]) -> Pixels:
    """Paints an image with its label map on the right."""
    painted = colors[np.minimum(record.label, len(colors) - 1)]
    height, width = record.label.shape
    scale = _LENGTH / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    methods = (Image.Resampling.BOX, Image.Resampling.NEAREST)
    image, label = (
        np.asarray(Image.fromarray(array).resize(size, method))
        for array, method in zip((record.image, painted), methods, strict=True)
    )
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([image, gap, label], axis=1)


def _arrange(pairs: Sequence[Pixels]) -> Pixels:
    """Arranges pairs in a grid on white, with room for a name above each."""
    height = max(pair.shape[0] for pair in pairs) + _NAME_HEIGHT
    width = max(pair.shape[1] for pair in pairs) + 3 * _GAP
    num_rows = -(-len(pairs) // _NUM_COLUMNS)
    sheet = np.full((num_rows * height, _NUM_COLUMNS * width, 3), 255, np.uint8)
    for index, pair in enumerate(pairs):
        row, column = divmod(index, _NUM_COLUMNS)
        top, left = row * height + _NAME_HEIGHT, column * width
        sheet[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
    return sheet


def _write_names(axis: Axes, records: Sequence[Record], sheet: Pixels) -> None:
    num_rows = -(-len(records) // _NUM_COLUMNS)
    height, width = sheet.shape[0] // num_rows, sheet.shape[1] // _NUM_COLUMNS
    for index, record in enumerate(records):
        row, column = divmod(index, _NUM_COLUMNS)
        axis.text(
            column * width,
            row * height + _NAME_HEIGHT - _GAP,
            record.name[-_MAX_NAME:],
            fontsize=7,
            parse_math=False,
        )
