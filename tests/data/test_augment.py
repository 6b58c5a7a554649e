"""Random crops, flips and color changes."""

import numpy as np
import pytest

from iterinf.data.augment import crop_randomly, flip_randomly, jitter_color, mirror
from iterinf.data.dataset import Record
from iterinf.errors import UserError

# The label at a pixel is its position, and so are the image's channels.
LABEL = np.arange(30, dtype=np.uint8).reshape(5, 6)
IMAGE = np.stack([LABEL, LABEL + 100, 255 - LABEL], axis=-1)
RECORD = Record(IMAGE, LABEL, "pixels")


def test_crop_takes_one_window_and_each_equally_often():
    rng = np.random.default_rng(0)
    counts = np.zeros((4, 3))
    for _ in range(2400):
        image, label, *_ = crop_randomly(RECORD, rng, (2, 4))
        assert label.shape == (2, 4)
        top, left = divmod(int(label[0, 0]), 6)
        np.testing.assert_array_equal(label, LABEL[top : top + 2, left : left + 4])
        np.testing.assert_array_equal(image[..., 0], label)
        np.testing.assert_array_equal(image[..., 2], 255 - label)
        counts[top, left] += 1
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)  # five standard deviations


def test_crop_of_full_size_is_identity():
    image, label, *_ = crop_randomly(RECORD, np.random.default_rng(0), (5, 6))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(label, LABEL)


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_crop_larger_than_image_names_both_sizes(size):
    message = f"crop size {size[0]}x{size[1]} .* 5x6"
    with pytest.raises(UserError, match=message):
        crop_randomly(RECORD, np.random.default_rng(0), size)


@pytest.mark.parametrize(("probability", "step"), [(0.0, 1), (1.0, -1)])
def test_flip_mirrors_both(probability, step):
    rng = np.random.default_rng(0)
    image, label, *_ = flip_randomly(RECORD, rng, probability)
    np.testing.assert_array_equal(image, IMAGE[:, ::step])
    np.testing.assert_array_equal(label, LABEL[:, ::step])


def make_record_with_outputs():
    """11 x 13 pixels; a cell of pool2 holds the position of its first pixel."""
    rows, columns = np.indices((11, 13), dtype=np.float32)
    position = np.stack([rows, columns], axis=-1)
    outputs = {"probabilities": position, "pool2": position[::4, ::4][:2, :3]}
    label = np.arange(11 * 13, dtype=np.uint8).reshape(11, 13)
    return Record(np.stack(3 * [label], axis=-1), label, "pixels", outputs)


def test_outputs_are_cropped_with_their_image():
    """A window begins where a cell of pool2 does, and holds whole cells."""
    rng, record = np.random.default_rng(0), make_record_with_outputs()
    starts = set()
    for _ in range(100):
        crop = crop_randomly(record, rng, (8, 4))
        top, left = divmod(int(crop.label[0, 0]), 13)
        starts.add((top, left))
        np.testing.assert_array_equal(
            crop.outputs["probabilities"],
            record.outputs["probabilities"][top : top + 8, left : left + 4],
        )
        expected = np.array([[[top, left]], [[top + 4, left]]])
        np.testing.assert_array_equal(crop.outputs["pool2"], expected)
    assert starts == {(0, 0), (0, 4), (0, 8)}


def test_outputs_are_flipped_with_their_image():
    record = make_record_with_outputs()
    flipped = flip_randomly(record, np.random.default_rng(0), 1.0)
    for name, array in record.outputs.items():
        np.testing.assert_array_equal(flipped.outputs[name], array[:, ::-1])


@pytest.mark.parametrize(("width", "shift"), [(13, 1), (12, 0)])
def test_a_mirrored_record_is_cropped_where_the_same_pixels_lie(width, shift):
    """To the cell; a flip takes it as it is, with outputs of its own."""
    record = make_record_with_outputs()
    record = Record(
        record.image[:, :width], record.label[:, :width], "", record.outputs
    )
    other = mirror(record)._replace(outputs={"pool2": record.outputs["pool2"] + 100})
    record = record._replace(mirrored=other)
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = crop_randomly(record, rng, (8, 4))
        flipped = flip_randomly(crop, rng, 1.0)
        top, left = divmod(int(crop.label[0, 0]), 13)
        columns = slice(left + shift, left + shift + 4)
        same = record.label[top : top + 8, columns][:, ::-1]
        np.testing.assert_array_equal(flipped.label, same)
        np.testing.assert_array_equal(flipped.image[..., 0], same)
        cells = [[[top, width // 4 * 4 - 4 - left]], [[top + 4, 8 - left]]]
        np.testing.assert_array_equal(flipped.outputs["pool2"], np.array(cells) + 100)
        assert flip_randomly(crop, rng, 0.0) is crop


def test_flip_has_its_probability():
    rng = np.random.default_rng(0)
    flips = [flip_randomly(RECORD, rng, 0.25).label[0, 0] == 5 for _ in range(4000)]
    assert abs(np.mean(flips) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_jitter_of_strength_zero_is_identity():
    image = np.arange(256 * 3, dtype=np.uint32).reshape(16, 16, 3) * 37 % 256
    image = image.astype(np.uint8)
    np.testing.assert_array_equal(
        jitter_color(image, np.random.default_rng(0), 0.0), image
    )


def test_jitter_follows_its_formula():
    image = np.random.default_rng(1).integers(256, size=(4, 5, 3)).astype(np.uint8)
    gamma, brightness, contrast, saturation = 2 ** np.random.default_rng(2).uniform(
        -0.5, 0.5, 4
    )
    x = brightness * (image / 255) ** gamma
    x = x.mean() + contrast * (x - x.mean())
    gray = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]
    expected = 255 * np.clip(gray + saturation * (x - gray), 0, 1)
    actual = jitter_color(image, np.random.default_rng(2), 0.5)
    assert actual.dtype == np.uint8
    assert np.abs(actual - expected).max() < 0.501


def test_jitter_leaves_gray_gray():
    image = np.repeat(LABEL[..., None] * 8, 3, axis=-1)
    jittered = jitter_color(image, np.random.default_rng(0), 1.0)
    assert np.ptp(jittered.astype(int), axis=-1).max() <= 1
    assert (jittered != image).any()
