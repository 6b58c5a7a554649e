"""Tests of generated scenes: exact bytes, geometry, and what labels promise."""

import hashlib

import numpy as np
import pytest

from iterinf.data.camvid_frames import CLASSES
from iterinf.data.streets.canvas import (
    BICYCLIST,
    CAMERA_HEIGHT,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIGN,
    SKY,
    VOID,
    Canvas,
    Sprite,
)
from iterinf.data.streets.scene import SPLIT_STRIDE, generate_scene, load_streets
from iterinf.errors import UserError

CHECKSUM = "c517227347a55ee59698577e6c3adbef2b1d45bee206d957491d8ce15bf5cdc7"


@pytest.fixture(scope="module")
def labels():
    """Label maps of 60 scenes."""
    return np.stack([generate_scene(0, i, 96, 128)[1] for i in range(60)])


def _measure_runs(mask):
    """Lengths of the runs of True along the last axis."""
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(1, 1)])
    steps = np.diff(padded.astype(int), axis=-1)
    return np.nonzero(steps == -1)[-1] - np.nonzero(steps == 1)[-1]


def test_bytes_are_pinned():
    digest = hashlib.sha256()
    for seed, index, height, width in [
        *((0, i, 96, 128) for i in range(8)),
        (1, SPLIT_STRIDE, 96, 128),
        (2, 3, 61, 83),
    ]:
        for array in generate_scene(seed, index, height, width):
            digest.update(array.tobytes())
    assert digest.hexdigest() == CHECKSUM


def test_scene_depends_on_seed_and_index_alone():
    image, label = generate_scene(3, 5, 48, 64)
    again, label_again = generate_scene(3, 5, 48, 64)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    for other in ((3, 6), (4, 5), (5, 3)):
        assert np.mean(generate_scene(*other, 48, 64)[0] != image) > 0.9


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 131), (180, 240), (40, 300)])
def test_sizes(size):
    image, label = generate_scene(0, 1, *size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert label.max() <= VOID
    assert {SKY, ROAD} <= set(np.unique(label))


def test_every_class_is_common(labels):
    shares = np.mean([np.bincount(m.ravel(), minlength=12) >= 20 for m in labels], 0)
    assert len(shares) == len(CLASSES) + 1
    assert shares[BICYCLIST] > 0.5
    assert np.delete(shares, BICYCLIST).min() > 0.8


def test_frequencies_resemble_camvid(labels):
    frequency = np.bincount(labels.ravel(), minlength=12) / labels.size
    low = [0.15, 0.15, 0.02, 0.25, 0.02, 0.07, 0.005, 0.015, 0.02, 0.01, 0.007, 0.01]
    high = [0.25, 0.25, 0.06, 0.36, 0.08, 0.15, 0.025, 0.04, 0.09, 0.025, 0.03, 0.06]
    assert np.all(frequency > low), frequency
    assert np.all(frequency < high), frequency


def test_poles_are_thin_and_tall(labels):
    across = _measure_runs(labels == POLE)
    along = _measure_runs((labels == POLE).transpose(0, 2, 1))
    assert np.median(across) <= 3
    assert np.percentile(across, 90) <= 6
    assert along.max() > 40
    assert np.mean(along) > 3 * np.mean(across)


def test_signs_stand_on_poles(labels):
    has_sign = (labels == SIGN).sum((1, 2)) >= 20
    touches = (labels[:, :-1] == SIGN) & (labels[:, 1:] == POLE)
    assert np.mean(touches.any((1, 2))[has_sign]) > 0.9
    upside_down = (labels[:, :-1] == POLE) & (labels[:, 1:] == SIGN)
    assert touches.sum() > 3 * upside_down.sum()


def test_sky_is_above_road(labels):
    height = labels.shape[1]
    rows = np.arange(height)[:, None]
    lowest_sky = np.where(labels == SKY, rows, -1).max(1)
    highest_road = np.where(labels == ROAD, rows, height).min(1)
    assert np.all(lowest_sky < highest_road)


@pytest.mark.parametrize("scale", [5.0, 8.0, 12.5])
def test_sprite_is_measured_in_metres(scale):
    canvas = Canvas(np.random.default_rng(0), 200, 200)
    sprite = Sprite(canvas, PEDESTRIAN, 1.5, scale, 0.5, 2.0)
    mask = sprite.bar(0, 0.8, 0, 1.8)
    rows, columns = np.nonzero(mask)
    assert abs(np.ptp(rows) + 1 - 1.8 * scale) <= 1
    assert abs(np.ptp(columns) + 1 - 0.8 * scale) <= 1
    foot = canvas.camera.horizon + CAMERA_HEIGHT * scale
    middle = canvas.camera.vanishing + 1.5 * scale
    assert abs(rows.max() + sprite.window[0].start + 1 - foot) <= 1
    assert abs(columns.mean() + sprite.window[1].start + 0.5 - middle) <= 0.5
    thin = sprite.bar(0, 0.001, 0, 1.8)
    assert set(thin.sum(1)) <= {0, 1, 2}
    assert thin.any(1).sum() == mask.any(1).sum()


def test_sprite_outside_the_picture_paints_nothing():
    canvas = Canvas(np.random.default_rng(0), 96, 128)
    for x in (-60.0, 60.0):
        sprite = Sprite(canvas, PEDESTRIAN, x, 10.0, 0.5, 2.0)
        sprite.paint(sprite.bar(0, 1, 0, 2), canvas.color([(1.0, 1.0, 1.0)]))
    assert not canvas.image.any()


def test_faded_paint_is_a_mixture():
    canvas = Canvas(np.random.default_rng(0), 96, 128)
    everywhere = np.ones((96, 128), bool)
    white = np.ones((3, 1, 1), np.float32)
    canvas.paint(everywhere, white, ROAD, texture=0, fades=True)
    np.testing.assert_allclose(canvas.image, [canvas.opacity] * 3, atol=1e-6)
    assert canvas.opacity.min() < 0.5
    assert canvas.opacity.max() == 1
    assert np.all(canvas.label == ROAD)


def test_splits_are_disjoint_and_stable():
    small = load_streets(height=32, width=48, num_train=6, num_validation=4, num_test=5)
    large = load_streets(height=32, width=48, num_train=9, num_validation=7, num_test=8)
    splits = small.train, small.validation, small.test
    assert [len(split) for split in splits] == [6, 4, 5]
    images = {record.image.tobytes() for split in splits for record in split}
    others = large.train, large.validation, large.test
    names = {name for split in splits for name in split.names}
    assert len(images) == len(names) == 15
    for split, longer in zip(splits, others, strict=True):
        np.testing.assert_array_equal(split[3].image, longer[3].image)
        np.testing.assert_array_equal(split[3].label, longer[3].label)
        assert split[3].name == longer[3].name
    assert small.test.blocks == tuple(range(5))
    assert small.classes == CLASSES
    assert len(small.colors) == len(CLASSES) + 1
    expected = generate_scene(0, SPLIT_STRIDE + 3, 32, 48)
    np.testing.assert_array_equal(small.validation[3].image, expected[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("height", 31),
        ("width", 8),
        ("seed", -1),
        ("num_train", 0),
        ("num_test", SPLIT_STRIDE + 1),
    ],
)
def test_bad_option_is_named(option, value):
    with pytest.raises(UserError, match=f"{option} of streets is {value}, expected"):
        load_streets(**{option: value})
