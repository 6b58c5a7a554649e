"""Confusion matrices and mean IoU, by hand and by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf


def count_by_loop(labels, predictions, num_classes):
    """Pixel by pixel."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for truth, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if 0 <= truth < num_classes:
            confusion[truth, prediction] += 1
    return confusion


def test_three_by_three_pixels_by_hand():
    labels = jnp.array([[0, 0, 1], [1, 2, 3], [3, 0, 2]])
    predictions = jnp.array([[0, 1, 1], [1, 0, 0], [2, 0, 2]])
    confusion = iterinf.confusion_matrix(labels, predictions, 3)
    np.testing.assert_array_equal(confusion, [[2, 1, 0], [0, 2, 0], [1, 0, 1]])
    expected = (2 / 4 + 2 / 3 + 1 / 2) / 3
    np.testing.assert_allclose(iterinf.mean_iou(confusion), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("num_classes", [2, 11])
def test_equals_a_loop(rng, dtype, num_classes):
    labels = rng.integers(0, num_classes + 3, (3, 7, 5)).astype(dtype)
    labels.flat[:2] = 255 if dtype == np.uint8 else (37, -1)
    predictions = rng.integers(0, num_classes, labels.shape).astype(np.int32)
    found = iterinf.confusion_matrix(
        jnp.asarray(labels), jnp.asarray(predictions), num_classes
    )
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(
        found, count_by_loop(labels, predictions, num_classes)
    )


def test_images_add_up_and_vmap_counts_each(rng):
    labels = jnp.asarray(rng.integers(0, 4, (5, 6, 7)))
    predictions = jnp.asarray(rng.integers(0, 3, (5, 6, 7)))

    def count(labels, predictions):
        return iterinf.confusion_matrix(labels, predictions, 3)

    each = jax.vmap(count)(labels, predictions)
    for i in range(5):
        np.testing.assert_array_equal(each[i], count(labels[i], predictions[i]))
    np.testing.assert_array_equal(each.sum(axis=0), count(labels, predictions))


def test_void_alone_counts_nothing():
    void = jnp.full((2, 2), 3)
    confusion = iterinf.confusion_matrix(void, jnp.zeros_like(void), 3)
    np.testing.assert_array_equal(confusion, np.zeros((3, 3)))
    assert np.isnan(iterinf.mean_iou(confusion))


def test_mean_iou_of_perfect_and_of_swapped_predictions():
    assert iterinf.mean_iou(jnp.diag(jnp.array([5, 1, 7]))) == 1
    assert iterinf.mean_iou(jnp.array([[0, 4], [4, 0]])) == 0


def test_a_class_absent_from_truth_and_prediction_is_left_out():
    confusion = jnp.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        iterinf.mean_iou(confusion), (3 / 4 + 4 / 5) / 2, rtol=1e-6
    )
    predicted = confusion.at[0, 2].set(1)  # predicted once, never true: counts as 0
    np.testing.assert_allclose(
        iterinf.mean_iou(predicted), (3 / 5 + 4 / 5 + 0) / 3, rtol=1e-6
    )


def test_labels_and_predictions_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        iterinf.confusion_matrix(jnp.zeros((2, 3), int), jnp.zeros((3, 2), int), 3)


@pytest.mark.parametrize(
    ("label", "prediction"), [(0, 255), (1, 3), (1, -1), (2, 2**32 + 1)]
)
def test_a_class_that_does_not_exist_is_refused_or_left_out(label, prediction):
    """Outside jit it is an error; inside, no other cell counts the pixel."""
    labels, predictions = np.array([label, 1]), np.array([prediction, 2])
    with pytest.raises(ValueError, match=f"class {prediction}, expected 0 to 2"):
        iterinf.confusion_matrix(labels, predictions, 3)
    count = jax.jit(iterinf.confusion_matrix, static_argnums=2)
    if prediction < 2**31:
        expected = count_by_loop(labels[1:], predictions[1:], 3)
        np.testing.assert_array_equal(count(labels, predictions, 3), expected)
    void = np.full(2, 3)
    assert iterinf.confusion_matrix(void, predictions, 3).sum() == 0


def test_a_label_beyond_int32_is_void():
    labels = np.array([2**32 + 1, 1])
    confusion = iterinf.confusion_matrix(labels, np.array([1, 1]), 3)
    np.testing.assert_array_equal(confusion, np.diag([0, 1, 0]))
