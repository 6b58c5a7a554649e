"""Change maps by hand, boxes round known changes, and what the figures show."""

from pathlib import Path
from typing import TypeGuard

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from iterinf.report.changes import (
    CORRECTED,
    DEGRADED,
    NEUTRAL,
    UNCHANGED,
    compute_changes,
    find_largest_changes,
)
from iterinf.report.curves import Curves
from iterinf.report.figures import Box, plot_iterations, plot_segmentations, save_figure

STEP_SIZES = (0.02, 0.1, 1.0)
VALIDATION = np.array(
    [[0.48, 0.49, 0.50, 0.505], [0.48, 0.51, 0.52, 0.50], [0.48, 0.47, 0.3, 0.1]]
)
TEST = np.array([0.41, 0.415, 0.42, 0.40])
CLASSES = ("sky", "road", "car")
COLORS = np.array([(128, 128, 128), (128, 64, 128), (64, 0, 128), (0, 0, 0)], np.uint8)


def plot_curves() -> Figure:
    """Figure 4 of three step sizes and three iterations."""
    test = {"mean_iou": TEST, "boundary_f1": TEST / 2}
    test |= {"nll": TEST, "fragmentation": 3 * TEST}
    curves = Curves({"mean_iou": VALIDATION, "boundary_f1": VALIDATION / 2}, test)
    return plot_iterations(
        curves, STEP_SIZES, 0.1, 2, title="DAE(y)", others={}, start="segmenter alone"
    )


def list_curves(axes: Axes) -> list[np.ndarray]:
    """The lines with a point an iteration, [t+1, 2] each."""
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    return [points for points in lines if len(points) == 4]


def contains(box: Box, top: int, left: int, height: int, width: int) -> bool:
    """Whether the rectangle lies within the box."""
    return (
        box[0] <= top
        and box[1] <= left
        and box[0] + box[2] >= top + height
        and box[1] + box[3] >= left + width
    )


def test_changes_by_hand() -> None:
    label = np.array([[0, 0, 0, 0], [1, 2, 3, 255]])
    before = np.array([[0, 1, 0, 1], [2, 2, 0, 0]])
    after = np.array([[0, 0, 1, 2], [2, 1, 1, 1]])
    expected = [[UNCHANGED, CORRECTED, DEGRADED, NEUTRAL], [UNCHANGED, DEGRADED, 0, 0]]
    np.testing.assert_array_equal(compute_changes(label, before, after, 3), expected)


def test_boxes_contain_the_changed_squares_largest_first() -> None:
    rng = np.random.default_rng(0)
    changes = (rng.random((120, 161)) < 0.01).astype(np.uint8)
    changes[30:61, 100:137] = CORRECTED
    changes[88:100, 3:22] = DEGRADED
    first, second = find_largest_changes(changes, num_boxes=2)
    assert contains(first, 30, 100, 31, 37)
    assert contains(second, 88, 3, 12, 19)
    assert first[2] * first[3] < 2 * 31 * 37


def test_thin_change_is_found_among_specks() -> None:
    changes = np.zeros((96, 128), np.uint8)
    changes[::31, ::31] = DEGRADED
    changes[20:60, 77:79] = CORRECTED
    assert contains(find_largest_changes(changes, num_boxes=1)[0], 20, 77, 40, 2)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (97, 41)])
def test_boxes_stay_within_images_of_any_size(shape: tuple[int, int]) -> None:
    changes = np.full(shape, CORRECTED, np.uint8)
    boxes = find_largest_changes(changes)
    assert boxes
    for top, left, height, width in boxes:
        assert min(top, left) >= 0
        assert min(height, width) >= 1
        assert top + height <= shape[0]
        assert left + width <= shape[1]


def test_no_box_where_nothing_was_corrected_or_degraded() -> None:
    assert find_largest_changes(np.zeros((50, 60), np.uint8)) == []
    assert find_largest_changes(np.full((50, 60), NEUTRAL, np.uint8)) == []


def test_validation_has_a_line_a_step_size() -> None:
    axes = plot_curves().axes[0]
    for points, values in zip(list_curves(axes), VALIDATION, strict=True):
        np.testing.assert_array_equal(points[:, 0], [0, 1, 2, 3])
        np.testing.assert_allclose(points[:, 1], 100 * values)
    widths = [line.get_linewidth() for line in axes.lines[:3]]
    assert widths.index(max(widths)) == 1


def test_iteration_panels_are_labelled() -> None:
    figure = plot_curves()
    for axes in figure.axes:
        assert axes.get_xlabel().startswith("iterations")
    assert [axes.get_ylabel() for axes in figure.axes] == [
        *("mean IoU (%)", "mean IoU (%)", "boundary F1 (%)", "boundary F1 (%)"),
        *("NLL (nats per pixel), test", "fragmentation, test"),
    ]
    assert figure.axes[1].get_title().startswith("test: not used for any choice")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["0.02", "0.1 (chosen)", "1"]


def test_choice_is_marked_in_both_panels() -> None:
    for axes, value in zip(plot_curves().axes, (52.0, 42.0), strict=False):
        (marker,) = [line for line in axes.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(np.asarray(marker.get_xydata()), [[2.0, value]])


def test_test_panels_have_the_chosen_step_size_only() -> None:
    expected = (100 * TEST, 50 * TEST, TEST, 3 * TEST)
    axes = plot_curves().axes
    for panel, values in zip((axes[1], *axes[3:]), expected, strict=True):
        (points,) = list_curves(panel)
        np.testing.assert_allclose(points[:, 1], values)


def test_failing_step_size_does_not_flatten_the_rest() -> None:
    axes = plot_curves().axes[0]
    assert axes.get_ylim()[0] == pytest.approx(40.0)  # 48 - 2 * (52 - 48)
    assert "cut off below; lowest 10.0" in [text.get_text() for text in axes.texts]


def make_scene() -> tuple[
    list[np.ndarray], list[np.ndarray], dict[str, list[np.ndarray]]
]:
    """Two images of a car on a road that the segmenter misses in the first."""
    labels = np.zeros((2, 48, 64), np.int32)
    labels[:, 24:] = 1
    labels[:, 30:40, 10:26] = 2
    labels[:, 46:] = 255
    before = np.minimum(labels, 2)
    before[0, 30:40, 10:26] = 1
    images = np.full((2, 48, 64, 3), 200, np.uint8)
    predictions = {"FCN8": list(before), "DAE(y)": list(np.minimum(labels, 2))}
    return list(images), list(labels), predictions


def is_white(patch: Patch) -> TypeGuard[Rectangle]:
    """Whether it is one of the boxes."""
    return isinstance(patch, Rectangle) and patch.get_edgecolor() == (1, 1, 1, 1)


def test_segmentations_have_a_row_an_image_and_titled_columns() -> None:
    figure = plot_segmentations(*make_scene(), CLASSES, COLORS)
    titles = [axes.get_title() for axes in figure.axes]
    assert (
        titles == ["image", "truth", "FCN8", "DAE(y)", "changes by DAE(y)"] + [""] * 5
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*CLASSES, "void", "corrected", "degraded"]


def test_segmentation_panels_show_the_colors_and_changes() -> None:
    figure = plot_segmentations(*make_scene(), CLASSES, COLORS)
    panels = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:5]]
    assert panels[1][0, 0].tolist() == [128, 128, 128]
    assert panels[1][47, 0].tolist() == [0, 0, 0]
    assert panels[2][35, 15].tolist() == [128, 64, 128]
    assert panels[3][35, 15].tolist() == [64, 0, 128]
    assert panels[4][0, 0].tolist() == [100, 100, 100]
    red, green, blue = panels[4][35, 15].astype(int)
    assert green > 2 * max(red, blue) - 50
    assert "corrected 5.2%, degraded 0.0%" in figure.axes[4].get_xlabel()


def test_boxes_are_the_same_in_every_panel_of_a_row() -> None:
    figure = plot_segmentations(*make_scene(), CLASSES, COLORS)
    boxes = [
        [patch.get_bbox().bounds for patch in axes.patches if is_white(patch)]
        for axes in figure.axes
    ]
    assert all(row == boxes[0] for row in boxes[:5])
    assert all(row == [] for row in boxes[5:])
    ((left, top, width, height),) = boxes[0]
    box = (round(top + 0.5), round(left + 0.5), round(height), round(width))
    assert contains(box, 30, 10, 10, 16)


def test_figure_is_saved_whole(tmp_path: Path) -> None:
    save_figure(plot_curves(), tmp_path / "figures" / "curve.png")
    with Image.open(tmp_path / "figures" / "curve.png") as image:
        image.load()
        assert image.size == (1560, 1680)  # 10.4 x 11.2 inches
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curve.png"]
