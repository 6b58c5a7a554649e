"""Confusion matrices by hand, and the bootstrap against a slow loop."""

import math
import operator
import time

import jax
import numpy as np
import pytest

from iterinf.evaluation.bootstrap import bootstrap
from iterinf.evaluation.measures import MEAN_IOU, MEASURES, compute_measure
from iterinf.evaluation.tally import Details, Tally
from iterinf.ops.metrics import (
    compute_class_iou,
    compute_global_accuracy,
    compute_mean_iou,
)
from iterinf.report.rows import make_row
from tests.tallies import make_tally

# [truth, prediction]: IoU 4/9, 2/6 and 3/8; 9 of 16 right.
CONFUSION = np.array([[4, 1, 1], [1, 2, 0], [2, 2, 3]])
CLASS_IOU = np.array([4 / 9, 2 / 6, 3 / 8])


def make_confusions(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Draws predictions for `truth` [n k] pixels a class; int32 as on the device."""
    k = truth.shape[1]
    wrong = np.full((k, k), 0.3 / (k - 1))
    chances = np.where(np.eye(k, dtype=bool), 0.7, wrong)
    return rng.multinomial(truth, chances).astype(np.int32)  # n k k


def bootstrap_gain(before, after, blocks, **options):
    """That of mean IoU."""
    return bootstrap(MEAN_IOU, make_tally(before), make_tally(after), blocks, **options)


def make_pair(n: int = 30, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Two models on the same images."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 60, (n, k))
    return make_confusions(rng, truth), make_confusions(rng, truth)


def test_closed_forms() -> None:
    np.testing.assert_allclose(compute_class_iou(CONFUSION), CLASS_IOU, rtol=1e-15)
    assert float(compute_mean_iou(CONFUSION)) == pytest.approx(CLASS_IOU.mean())
    assert float(compute_global_accuracy(CONFUSION)) == pytest.approx(9 / 16)


def test_leading_axes_are_kept() -> None:
    grid = np.stack([[CONFUSION, 2 * CONFUSION, np.diag([1, 2, 3])]] * 2)
    assert compute_class_iou(grid).shape == (2, 3, 3)
    mean = CLASS_IOU.mean()
    np.testing.assert_allclose(compute_mean_iou(grid), [[mean, mean, 1.0]] * 2)
    np.testing.assert_allclose(compute_global_accuracy(grid), [[9 / 16] * 2 + [1]] * 2)


def test_absent_class_is_nan_and_left_out_of_the_mean() -> None:
    confusion = np.zeros((4, 4), np.int32)
    confusion[np.ix_([0, 1, 3], [0, 1, 3])] = CONFUSION
    iou = compute_class_iou(confusion)
    assert np.flatnonzero(np.isnan(iou)).tolist() == [2]
    assert float(compute_mean_iou(confusion)) == pytest.approx(CLASS_IOU.mean())


def test_class_predicted_but_absent_from_truth_counts_as_zero() -> None:
    confusion = np.array([[3, 1], [0, 0]])
    np.testing.assert_array_equal(compute_class_iou(confusion), [0.75, 0.0])
    assert float(compute_mean_iou(confusion)) == 0.375


def test_no_pixel_at_all_is_nan() -> None:
    empty = np.zeros((2, 2), np.int64)
    assert math.isnan(compute_mean_iou(empty))
    assert math.isnan(compute_global_accuracy(empty))


def test_identical_models_gain_exactly_nothing() -> None:
    confusions, _ = make_pair()
    assert bootstrap_gain(confusions, confusions, range(30)) == (0.0, 0.0, 0.0)


def test_same_gain_on_every_image_has_no_width() -> None:
    # IoU is 1/2 and 1/2 before, 1 and 1 after, whichever images are drawn.
    before = np.tile([[2, 1], [1, 2]], (7, 1, 1)) * np.arange(1, 8)[:, None, None]
    after = np.tile([[3, 0], [0, 3]], (7, 1, 1)) * np.arange(1, 8)[:, None, None]
    interval = bootstrap_gain(before, after, range(7), num_resamples=50)
    np.testing.assert_allclose(interval, (50.0, 50.0, 50.0), rtol=1e-14)


def test_single_block_has_no_width() -> None:
    before, after = make_pair()
    gain, low, high = bootstrap_gain(before, after, [8] * 30, num_resamples=20)
    means = [100 * float(compute_mean_iou(c.sum(axis=0))) for c in (before, after)]
    assert gain == pytest.approx(means[1] - means[0], rel=1e-12)
    assert low == pytest.approx(gain, rel=1e-12)
    assert high == pytest.approx(gain, rel=1e-12)


def test_equals_slow_loop_over_whole_blocks() -> None:
    before, after = make_pair()
    blocks = np.repeat([7, 2, 2, 40, -1], 6)  # unsorted, one of double length
    unique = np.unique(blocks)
    generator = np.random.default_rng(5)
    differences = []
    for _ in range(40):
        counts = generator.multinomial(4, [0.25] * 4)
        drawn = np.repeat(unique, counts)
        images = np.concatenate([np.flatnonzero(blocks == block) for block in drawn])
        means = [compute_mean_iou(c[images].sum(axis=0)) for c in (before, after)]
        differences.append(100 * (means[1] - means[0]))
    interval = bootstrap_gain(
        before, after, blocks.tolist(), num_resamples=40, seed=5, level=0.8
    )
    expected = np.percentile(differences, [10, 90])
    np.testing.assert_allclose(interval[1:], expected, rtol=1e-10)


def test_resample_without_a_class_leaves_it_out() -> None:
    # Class 1 occurs in block 1 only; a draw of block 0 alone must not give nan.
    before = np.array([[[4, 0], [0, 0]], [[2, 0], [1, 1]]])
    after = np.array([[[4, 0], [0, 0]], [[2, 0], [0, 2]]])
    _, low, high = bootstrap_gain(before, after, [0, 1], level=0.998)
    assert low == 0.0  # block 0 twice
    assert high == pytest.approx(100 * (1 - (2 / 3 + 1 / 2) / 2))  # block 1 twice


def test_resample_without_a_pixel_leaves_the_interval_known() -> None:
    before = np.array([[[0, 0], [0, 0]], [[2, 0], [1, 1]]])
    after = np.array([[[0, 0], [0, 0]], [[2, 0], [0, 2]]])
    gain, low, high = bootstrap_gain(before, after, [0, 1])
    assert low == high == gain > 0


def test_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Of two classes one occurs: its IoU is the accuracy, .6 and .7 on average with a
    # difficulty shared by the pair; the other's is 0. So the true gain is 5 points.
    hits = 0
    for trial in range(200):
        easy = rng.uniform(-0.1, 0.1, 40)
        right = [rng.binomial(100, mean + easy) for mean in (0.6, 0.7)]
        before, after = (
            np.array([[[count, 100 - count], [0, 0]] for count in counts])
            for counts in right
        )
        interval = bootstrap_gain(
            before, after, range(40), num_resamples=300, seed=trial
        )
        hits += interval.low <= 5.0 <= interval.high
    assert 180 <= hits <= 199


def test_size_of_the_test_split_takes_less_than_a_second() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3000, (233, 11))
    before, after = make_confusions(rng, truth), make_confusions(rng, truth)
    start = time.perf_counter()
    bootstrap_gain(before, after, range(233))
    assert time.perf_counter() - start < 1.0


def test_counts_beyond_int32_are_exact() -> None:
    half = np.full((3, 2, 2), 2**30 - 1, np.int32)  # IoU 1/3
    perfect = np.stack([np.diag([2**31 - 2] * 2).astype(np.int32)] * 3)
    interval = bootstrap_gain(half, perfect, range(3), num_resamples=10)
    np.testing.assert_allclose(interval, [100 * 2 / 3] * 3, rtol=1e-12)


def test_models_on_different_images_are_refused() -> None:
    before, after = make_pair()
    with pytest.raises(ValueError, match="same images"):
        bootstrap_gain(before, after[::-1], range(30))
    with pytest.raises(ValueError, match="29 blocks"):
        bootstrap_gain(before, after, range(29))


def test_row_of_the_plain_network() -> None:
    confusions = np.stack([CONFUSION, CONFUSION])
    row = make_row("FCN8", make_tally(confusions), make_tally(confusions), [0, 1])
    np.testing.assert_allclose(row.class_iou, 100 * CLASS_IOU)
    assert row.mean_iou == pytest.approx(100 * CLASS_IOU.mean())
    assert row.global_accuracy == pytest.approx(56.25)
    assert row[4:-1] == (0.0, 0.0, 0.0, None, 0, False)
    assert all(found[1:] == (0.0, 0.0, 0.0) for _, found in row.measures)


def test_row_of_a_refiner() -> None:
    before, after = make_pair()
    plain = make_row("FCN8", make_tally(before), make_tally(before), range(30))
    row = make_row(
        "DAE",
        make_tally(after),
        make_tally(before),
        range(30),
        step_size=0.08,
        num_iterations=17,
    )
    assert row.gain == pytest.approx(row.mean_iou - plain.mean_iou, rel=1e-9)
    assert row[4:7] == bootstrap_gain(before, after, range(30))
    assert row[7:-1] == (0.08, 17, False)


def test_measures_by_hand() -> None:
    """Two images: three and one labelled pixels, two and four regions in truth."""
    calibration = np.zeros((2, 15, 3))
    calibration[0, 14] = 3, 2.9, 2  # three pixels of confidence 2.9 / 3, two right
    calibration[1, 6] = 1, 0.45, 1
    details = Details(
        np.array([0.6, 1.0]), calibration, np.array([3, 9]), np.array([2, 4])
    )
    confusions = np.array([[[2, 1], [0, 0]], [[0, 0], [0, 1]]])
    tally = Tally(confusions, np.array([0.25, 0.75]), details)
    found = {
        name: compute_measure(measure, tally) for name, measure in MEASURES.items()
    }
    expected = {
        "boundary_f1": 0.5,
        "nll": 1.6 / 4,
        "ece": (abs(2.9 - 2) + abs(0.45 - 1)) / 4,
        "fragmentation": 12 / 6,
    }
    assert found == pytest.approx(expected)


def test_images_without_a_boundary_are_left_out() -> None:
    tally = make_tally(np.stack([CONFUSION] * 3))._replace(
        boundary_f1=np.array([np.nan, 0.2, 0.4], np.float32)
    )
    measure = MEASURES["boundary_f1"]
    assert compute_measure(measure, tally) == pytest.approx(0.3)
    interval = bootstrap(measure, tally, tally, range(3))
    assert interval == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", MEASURES)
def test_intervals_of_measures_equal_a_loop_over_blocks(name) -> None:
    confusions, _ = make_pair(n=12)
    before, after = make_tally(confusions, seed=1), make_tally(confusions, seed=2)
    measure, blocks = MEASURES[name], np.repeat(range(4), 3)
    generator = np.random.default_rng(5)
    differences = []
    for _ in range(40):
        counts = generator.multinomial(4, [0.25] * 4)
        drawn = np.repeat(range(4), counts)
        images = np.concatenate([np.flatnonzero(blocks == block) for block in drawn])
        one, other = (
            compute_measure(measure, jax.tree.map(operator.itemgetter(images), tally))
            for tally in (before, after)
        )
        differences.append(measure.unit * (other - one))
    interval = bootstrap(
        measure, before, after, blocks.tolist(), num_resamples=40, seed=5, level=0.8
    )
    np.testing.assert_allclose(interval[1:], np.percentile(differences, [10, 90]))


def test_a_measure_that_is_not_defined_is_nan() -> None:
    tally = make_tally(np.stack([CONFUSION] * 2))._replace(
        boundary_f1=np.full(2, np.nan, np.float32)
    )
    row = make_row("FCN8", tally, tally, (0, 1))
    assert all(map(math.isnan, dict(row.measures)["boundary_f1"]))
    assert row.gain_low == 0
