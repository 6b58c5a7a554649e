"""Training batches: content by seed and position, exact resumption, threads."""

import contextlib
import itertools
import threading

import numpy as np
import pytest

from iterinf.data.dataset import Record, Split
from iterinf.data.loader import make_train_batches
from iterinf.errors import UserError

OPTIONS = {"batch_size": 3, "crop_size": (4, 5), "flip_probability": 0.5, "seed": 7}


def make_split(count, height=6, width=8):
    """Records whose red channel is their number, and label their column."""

    def read(index):
        image = np.full((height, width, 3), index, np.uint8)
        image[..., 1] = np.arange(height)[:, None]
        image[..., 2] = label = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
        return Record(image, label.copy(), f"r{index}")

    return Split(read, [f"r{i}" for i in range(count)], range(count))


def take(count, split, **options):
    """The first batches of an iterator, which is closed."""
    with contextlib.closing(make_train_batches(split, **options)) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(actual, expected):
    """Two lists of batches are equal to the bit."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)


def list_numbers(batches):
    """The numbers of the records, in order."""
    return [round(255 * x) for b in batches for x in b.image[:, 0, 0, 0].tolist()]


def test_batches_have_the_promised_form():
    for batch in take(4, make_split(5), **OPTIONS):
        assert batch.image.shape == (3, 4, 5, 3)
        assert batch.label.shape == (3, 4, 5)
        assert batch.image.dtype == np.float32
        assert batch.label.dtype == np.int32
        np.testing.assert_array_equal(np.rint(255 * batch.image[..., 2]), batch.label)


def test_every_epoch_has_every_record_in_another_order():
    numbers = list_numbers(take(24, make_split(12), **OPTIONS))
    epochs = [tuple(numbers[i : i + 12]) for i in range(0, 72, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(epochs)) == 6


def test_crops_differ_between_epochs():
    batches = take(20, make_split(1), **{**OPTIONS, "batch_size": 1})
    windows = {(b.image[0, ..., 1:].tobytes()) for b in batches}
    assert len(windows) > 8


def test_split_smaller_than_a_batch_is_repeated():
    options = {**OPTIONS, "batch_size": 5, "crop_size": None}
    batches = take(2, make_split(2), **options)
    assert batches[0].image.shape == (5, 6, 8, 3)
    numbers = list_numbers(batches)
    assert all({*numbers[i : i + 2]} == {0, 1} for i in range(0, 10, 2))


@pytest.mark.parametrize("num_threads", [0, 2, 5])
def test_threads_change_nothing(num_threads):
    options = {**OPTIONS, "jitter": 0.5}
    expected = take(15, make_split(7), **options)
    assert_equal(take(15, make_split(7), num_threads=num_threads, **options), expected)


@pytest.mark.parametrize("num_threads", [0, 1, 2])
@pytest.mark.parametrize("first_batch", [1, 4, 11])
def test_start_in_the_middle_goes_on_exactly(first_batch, num_threads):
    expected = take(14, make_split(7), **OPTIONS)[first_batch:]
    options = {**OPTIONS, "first_batch": first_batch, "num_threads": num_threads}
    assert_equal(take(14 - first_batch, make_split(7), **options), expected)


def test_far_position_is_reached_at_once():
    split = make_split(7)
    take(1, split, **OPTIONS, first_batch=10**9)


def test_seed_decides():
    first, same, other = (
        take(4, make_split(7), **{**OPTIONS, "seed": seed}) for seed in (1, 1, 2)
    )
    assert_equal(first, same)
    assert list_numbers(first) != list_numbers(other)


def test_jitter_moves_no_crop():
    plain = take(5, make_split(7), **OPTIONS)
    jittered = take(5, make_split(7), **OPTIONS, jitter=0.5)
    for a, b in zip(plain, jittered, strict=True):
        np.testing.assert_array_equal(a.label, b.label)
        assert (a.image != b.image).any()
        assert 0 <= b.image.min() <= b.image.max() <= 1


def test_closed_iterators_leave_no_thread():
    before = set(threading.enumerate())
    batches = make_train_batches(make_split(7), **OPTIONS, num_threads=3)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_empty_split():
    with pytest.raises(UserError, match="training split is empty"):
        make_train_batches(make_split(0), **OPTIONS)


@pytest.mark.parametrize("num_threads", [0, 1])
def test_crop_larger_than_the_images(num_threads):
    options = {**OPTIONS, "crop_size": (7, 8), "num_threads": num_threads}
    with pytest.raises(UserError, match="crop size 7x8 .* 6x8"):
        take(1, make_split(3), **options)


def test_whole_images_of_two_sizes_are_named():
    small, large = make_split(1), make_split(1, width=9)
    split = Split(lambda i: (small, large)[i][0], ["small", "large"], [0, 1])
    options = {**OPTIONS, "crop_size": None, "batch_size": 2}
    with pytest.raises(UserError, match="is 6x[89] but .* is 6x[89]"):
        take(1, split, **options)
