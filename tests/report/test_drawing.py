"""Painted predictions."""

import io

import numpy as np
import pytest
from PIL import Image

from iterinf.data.image_io import read_image, read_label
from iterinf.report.drawing import (
    dim,
    draw_legend,
    encode_animation,
    encode_label_map,
    overlay,
    paint_changes,
    place_side_by_side,
)

COLORS = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 250], [0, 0, 0]], np.uint8)


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture
def labels(rng):
    return rng.integers(0, 3, (6, 9), dtype=np.uint8)


def decode(content):
    return Image.open(io.BytesIO(content))


def test_a_label_map_holds_ids_and_shows_colors(labels, tmp_path):
    path = tmp_path / "labels.png"
    path.write_bytes(encode_label_map(labels, COLORS))
    np.testing.assert_array_equal(read_label(path), labels)
    np.testing.assert_array_equal(read_image(path), COLORS[labels])


def test_an_overlay_is_half_image_half_color(image, labels):
    expected = (image.astype(float) + COLORS[labels]) / 2
    assert np.abs(overlay(image, labels, COLORS) - expected).max() <= 1


def test_changes_are_in_the_new_color_on_grey(image, labels):
    after = labels.copy()
    after[2:4, 3:5] = (after[2:4, 3:5] + 1) % 3
    painted = paint_changes(image, labels, after, COLORS)
    np.testing.assert_array_equal(painted[2:4, 3:5], COLORS[after[2:4, 3:5]])
    rest = labels == after
    grey = image.mean(axis=-1, keepdims=True) / 2
    assert np.abs(painted - grey)[rest].max() <= 1
    np.testing.assert_array_equal(painted[rest], dim(image)[rest])


def test_panels_are_side_by_side_and_no_wider_than_asked(image, labels):
    panels = place_side_by_side(image, (labels, labels), COLORS, width=20)
    assert panels.shape == (6, 3 * 9 + 2 * 8, 3)
    np.testing.assert_array_equal(panels[:, :9], image)
    np.testing.assert_array_equal(panels[:, -9:], COLORS[labels])
    assert (panels[:, 9:17] == 255).all()
    assert place_side_by_side(image, (labels,), COLORS, width=3).shape == (2, 14, 3)


def test_a_legend_has_a_line_a_class():
    legend = draw_legend(["sky", "a longer name", "road"], COLORS)
    assert legend.shape[0] == 3 * 32
    np.testing.assert_array_equal(legend[16::32, 16], COLORS[:3])


def test_an_animation_has_a_frame_a_label_map(rng):
    maps = rng.integers(0, 3, (4, 6, 100), dtype=np.uint8)
    animation = decode(encode_animation(maps, COLORS))
    assert (animation.n_frames, animation.size) == (4, (500, 30))
    assert animation.info["loop"] == 0
    for index in (0, 3):
        animation.seek(index)
        shown = np.asarray(animation.convert("RGB"))[::5, ::5]
        np.testing.assert_array_equal(shown, COLORS[maps[index]])
