"""The contact sheet: images of each split beside their label maps."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from iterinf.data.dataset import Dataset, Record, Split
from iterinf.report.drawing import place_side_by_side
from iterinf.report.legend import count_columns, list_classes

_NUM_ROWS, _NUM_COLUMNS = 3, 4  # of image pairs per split
_MAX_NAME = 60  # characters
_WIDTH = 14.0  # of the figure, in inches
_PIXELS = 240  # maximum width of an image


def plot_contact_sheet(dataset: Dataset) -> Figure:
    """Draws evenly spaced images of each split beside their painted label maps."""
    records = {name: _pick_records(split) for name, split in dataset.splits.items()}
    labels = [record.label for shown in records.values() for record in shown]
    entries = list_classes(labels, dataset.classes, dataset.colors)
    num_columns = count_columns(entries, _WIDTH)
    height, width = labels[0].shape
    row_height = 0.3 + _WIDTH / _NUM_COLUMNS * height / (2 * width)
    num_rows = [-(-len(shown) // _NUM_COLUMNS) for shown in records.values()]
    total = row_height * sum(num_rows) + 0.25 * (4 + len(entries) // num_columns)
    layout = ConstrainedLayoutEngine(wspace=0.1)  # more than between image and labels
    figure = Figure(figsize=(_WIDTH, total), layout=layout)
    grid = figure.add_gridspec(len(records), 1, height_ratios=num_rows)
    for i, (name, shown) in enumerate(records.items()):
        part = figure.add_subfigure(grid[i])
        title = f"{name}: {len(shown)} of {len(dataset.splits[name])} images"
        part.suptitle(title, x=0.01, ha="left", fontsize=12)
        axes = part.subplots(num_rows[i], _NUM_COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, record in zip(axes, shown, strict=False):
            label = np.minimum(record.label, dataset.num_classes)
            pair = place_side_by_side(
                record.image, [label], dataset.colors, width=_PIXELS
            )
            axis.imshow(pair, interpolation="nearest")
            title = record.name[-_MAX_NAME:]
            axis.set_title(title, loc="left", fontsize=7, parse_math=False)
    figure.legend(
        handles=entries, loc="outside lower center", ncols=num_columns, fontsize=9
    )
    return figure


def _pick_records(split: Split) -> list[Record]:
    """Returns evenly spaced records, including the first and the last."""
    count = min(_NUM_ROWS * _NUM_COLUMNS, len(split))
    return [split[int(i)] for i in np.linspace(0, len(split) - 1, count)]
