"""Losses by hand, with void pixels, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from iterinf.losses import (
    LossSum,
    compute_cross_entropy,
    compute_reconstruction_loss,
    encode_labels,
)

LABELS = jnp.array([[[0, 1, 2], [3, 2, 1], [0, 3, 3]]])  # 3 classes: 3 is void
VALID = np.asarray(LABELS[0] < 3)


def make_logits(rng, shape=(1, 3, 3, 3)):
    """Standard normal logits."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def compute_by_hand(r, labels, squared_error=1.0, cross_entropy=1.0):
    """Eq. 5 pixel by pixel; labels above the last class are left out."""
    total, count = 0.0, 0
    for index in np.ndindex(*labels.shape):
        label = int(labels[index])
        if label < r.shape[-1]:
            truth = np.eye(r.shape[-1])[label]
            p = np.asarray(r[index], np.float64)
            total += squared_error * np.sum((p - truth) ** 2)
            total -= cross_entropy * np.log(p[label])
            count += 1
    return total, count


def test_encoding_leaves_void_at_zero():
    encoded = encode_labels(LABELS, 3)
    np.testing.assert_array_equal(encoded.sum(axis=-1)[0], VALID)
    np.testing.assert_array_equal(encoded.argmax(axis=-1)[0][VALID], LABELS[0][VALID])


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0), (1 / 3, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)]
)
def test_equation_5_by_hand(rng, weights):
    r = jax.nn.softmax(make_logits(rng))
    loss = compute_reconstruction_loss(
        r, LABELS, squared_error=weights[0], cross_entropy=weights[1]
    )
    total, count = compute_by_hand(r, LABELS, *weights)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.num_pixels == count == 6
    np.testing.assert_allclose(loss.mean, total / 6, rtol=1e-5)


def test_equation_5_of_one_pixel():
    r = jnp.array([[[[0.5, 0.25, 0.25]]]])
    loss = compute_reconstruction_loss(r, jnp.array([[[1]]]))
    np.testing.assert_allclose(
        loss.total, 0.25 + 0.5625 + 0.0625 + np.log(4), rtol=1e-6
    )


def test_cross_entropy_by_hand(rng):
    logits = make_logits(rng)
    loss = compute_cross_entropy(logits, LABELS)
    total, count = compute_by_hand(jax.nn.softmax(logits), LABELS, squared_error=0)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.num_pixels == count


@pytest.mark.parametrize("name", ["segmenter", "refiner"])
def test_masking_a_pixel_is_dropping_it(rng, name):
    compute = {
        "segmenter": compute_cross_entropy,
        "refiner": lambda x, labels: compute_reconstruction_loss(
            jax.nn.softmax(x), labels
        ),
    }[name]
    logits = make_logits(rng)
    masked = compute(logits, LABELS)
    kept = logits[0][VALID].reshape(1, 1, -1, 3)
    dropped = compute(kept, LABELS[0][VALID].reshape(1, 1, -1))
    np.testing.assert_allclose(masked.total, dropped.total, rtol=1e-6)
    assert masked.num_pixels == dropped.num_pixels
    gradient = jax.jit(jax.grad(lambda x: compute(x, LABELS).total))(logits)[0]
    np.testing.assert_array_equal(gradient[~VALID], 0)
    assert np.all(np.any(gradient[VALID] != 0, axis=-1))


def test_a_padded_batch_has_the_loss_of_the_unpadded(rng):
    logits = make_logits(rng)
    padded = jnp.concatenate([logits, 9 * logits])
    labels = jnp.concatenate([LABELS, jnp.full_like(LABELS, 3)])
    found = compute_cross_entropy(padded, labels)
    expected = compute_cross_entropy(logits, LABELS)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-6)
    assert found.num_pixels == expected.num_pixels


def test_void_alone_has_a_loss_and_a_gradient_of_zero(rng):
    logits, void = make_logits(rng), jnp.full_like(LABELS, 3)

    def compute(x):
        segmenter = compute_cross_entropy(x, void).mean
        return segmenter + compute_reconstruction_loss(jax.nn.softmax(x), void).mean

    value, gradient = jax.value_and_grad(compute)(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_sums_add_up_to_the_loss_of_the_union(rng):
    logits = make_logits(rng, (2, 3, 3, 3))
    labels = jnp.concatenate([LABELS, 2 - LABELS % 3])
    parts = [
        compute_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in (0, 1)
    ]
    whole = compute_cross_entropy(logits, labels)
    summed = LossSum(*map(sum, zip(*parts, strict=True)))
    np.testing.assert_allclose(summed.mean, whole.mean, rtol=1e-6)


def test_cross_entropy_from_probabilities_equals_that_from_logits(rng):
    """Up to -log r = 55; beyond, probabilities underflow and it stays finite."""
    labels = jnp.zeros((1, 1, 5), jnp.int32)
    margins = jnp.array([-80.0, -5.0, 5.0, 30.0, 55.0])  # of class 1 over class 0
    logits = jnp.zeros((1, 1, 5, 3)).at[0, 0, :, 1].set(margins)

    def compute(logits):
        return compute_reconstruction_loss(
            jax.nn.softmax(logits), labels, squared_error=0.0
        ).total

    differentiate = jax.jit(jax.value_and_grad(compute))
    found, gradient = differentiate(logits)
    expected, gradient_expected = jax.jit(
        jax.value_and_grad(lambda logits: compute_cross_entropy(logits, labels).total)
    )(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, gradient_expected, rtol=1e-4, atol=1e-6)
    value, gradient = differentiate(100 * logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_gradients_equal_finite_differences(rng):
    logits = make_logits(rng)

    def compute_both(x):
        refiner = compute_reconstruction_loss(jax.nn.softmax(x), LABELS)
        return compute_cross_entropy(x, LABELS).mean + refiner.mean

    check_grads(jax.jit(compute_both), (logits,), 1, atol=1e-2, rtol=1e-2)


def test_class_weights_make_a_weighted_mean(rng):
    """As torch.nn.functional.cross_entropy(weight=..., ignore_index=...) has it."""
    logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 4, 5)).astype(np.int32)  # 3: void
    weights = np.array([0.5, 2.0, 7.0], np.float32)
    found = compute_cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights)
    )
    total = count = 0.0
    for pixel, label in zip(logits.reshape(-1, 3), labels.ravel(), strict=True):
        if label < 3:
            log_sum = np.log(np.exp(pixel.astype(np.float64)).sum())
            total += weights[label] * (log_sum - pixel[label])
            count += weights[label]
    np.testing.assert_allclose(found.total, total, rtol=1e-5)
    np.testing.assert_allclose(found.mean, total / count, rtol=1e-5)
