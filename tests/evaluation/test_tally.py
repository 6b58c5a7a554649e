"""What is counted of an image, by NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np

from iterinf.evaluation.tally import (
    NUM_BINS,
    Spec,
    pack,
    prepare_truth,
    tally_image,
    unpack,
)
from tests.fixtures.by_scipy import compute_by_scipy, count_by_scipy

K = 4
SPEC = Spec(K, 0.06, details=True)
SIZE = (22, 30)


def draw(rng):
    """A label map with void, and probabilities, some of them 0 and 1."""
    label = np.kron(rng.integers(0, K, (6, 8)), np.ones((4, 4), int))[:22, :30]
    label[rng.random(SIZE) < 0.1] = 255
    logits = 4 * np.eye(K)[np.minimum(label, K - 1)] + 3 * rng.normal(size=(*SIZE, K))
    y = np.array(jax.nn.softmax(logits), np.float32)
    y[:2] = np.eye(K)[rng.integers(0, K, (2, 30))]
    return label.astype(np.uint8), y


def test_everything_equals_a_loop(rng):
    label, y = draw(rng)
    truth = prepare_truth(jnp.asarray(label), SPEC)
    found = jax.jit(tally_image, static_argnums=2)(truth, jnp.asarray(y), SPEC)
    valid, prediction = label < K, y.argmax(axis=-1)
    confusion = np.zeros((K, K), int)
    np.add.at(confusion, (label[valid], prediction[valid]), 1)
    np.testing.assert_array_equal(found.confusion, confusion)
    radius = 0.06 * np.hypot(*SIZE)
    expected = compute_by_scipy(label, prediction, K, radius)
    np.testing.assert_allclose(found.boundary_f1, expected, rtol=1e-5)
    likelihood = y[valid, label[valid]]
    expected = -np.log(np.maximum(likelihood, 1e-7)).sum()
    np.testing.assert_allclose(found.details.negative_log_likelihood, expected, 1e-5)
    confidence, right = y.max(axis=-1)[valid], (prediction == label)[valid]
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for b in range(NUM_BINS):
        last = b == NUM_BINS - 1
        inside = (confidence >= edges[b]) & ((confidence < edges[b + 1]) | last)
        expected = inside.sum(), confidence[inside].sum(), right[inside].sum()
        np.testing.assert_allclose(found.details.calibration[b], expected, rtol=1e-4)
    assert found.details.num_components == count_by_scipy(prediction, valid)
    assert found.details.num_true_components == count_by_scipy(label, valid)


def test_boundaries_can_be_left_out(rng):
    label, y = draw(rng)
    spec = Spec(K, None)
    found = tally_image(prepare_truth(jnp.asarray(label), spec), jnp.asarray(y), spec)
    assert np.isnan(found.boundary_f1)
    assert found.details is None
    assert found.confusion.sum() == (label < K).sum()


def test_a_file_gives_back_what_it_got(rng):
    label, y = draw(rng)
    truth = prepare_truth(jnp.asarray(label), SPEC)
    tally = jax.tree.map(np.asarray, tally_image(truth, jnp.asarray(y), SPEC))
    back = unpack(pack("refined", tally), "refined")
    jax.tree.map(np.testing.assert_array_equal, back, tally)


def test_calibration_of_a_large_image_keeps_its_digits(rng):
    """Confidences near 1 of 360x480 pixels: the sum is right to 1e-5."""
    confidence = rng.uniform(0.996, 1, (360, 480)).astype(np.float32)
    y = np.stack([confidence, 1 - confidence], axis=-1)
    spec = Spec(2, None, details=True)
    truth = prepare_truth(jnp.zeros((360, 480), jnp.int32), spec)
    found = tally_image(truth, jnp.asarray(y), spec).details
    expected = confidence.astype(np.float64).sum()
    np.testing.assert_allclose(found.calibration[-1, 1], expected, rtol=1e-5)
    expected = -np.log(confidence.astype(np.float64)).sum()
    np.testing.assert_allclose(found.negative_log_likelihood, expected, rtol=1e-3)
