"""Losses by hand, with void pixels, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from iterinf.training.losses import (
    LossSum,
    compute_cross_entropy,
    compute_reconstruction_loss,
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


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0), (1 / 3, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)]
)
def test_equation_5_by_hand(rng, weights):
    logits = make_logits(rng)
    r = jax.nn.softmax(logits)
    loss = compute_reconstruction_loss(
        logits, LABELS, squared_error=weights[0], cross_entropy=weights[1]
    )
    total, count = compute_by_hand(r, LABELS, *weights)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.num_pixels == count == 6
    np.testing.assert_allclose(loss.mean, total / 6, rtol=1e-5)


def test_equation_5_of_one_pixel():
    logits = jnp.log(jnp.array([[[[0.5, 0.25, 0.25]]]]))
    loss = compute_reconstruction_loss(logits, jnp.array([[[1]]]))
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
        "refiner": compute_reconstruction_loss,
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
        return segmenter + compute_reconstruction_loss(x, void).mean

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


@pytest.mark.parametrize("gap", [0.0, 10.0, 50.0, 68.0, 72.0, 90.0, 500.0])
@pytest.mark.parametrize("wrong", [True, False])
def test_gradient_of_eq_5_at_any_logit_gap(gap, wrong):
    """For two classes: d/da of -log r is r - 1, of the squared error -4 r (1 - r)^2."""
    logits = jnp.array([0.0, gap] if wrong else [gap, 0.0])

    def compute(logits, **weights):
        labels = jnp.zeros((1, 1, 1), jnp.int32)
        return compute_reconstruction_loss(
            logits[None, None, None], labels, **weights
        ).total

    gradient = jax.jit(jax.grad(compute))(logits)
    exact = np.float64(gap)
    r = 1 / (1 + np.exp(exact)) if wrong else 1 / (1 + np.exp(-exact))
    miss = 1 - r if wrong else 1 / (1 + np.exp(exact))
    expected = -miss - 4 * r * miss**2
    np.testing.assert_allclose(gradient, [expected, -expected], rtol=1e-5, atol=1e-7)
    loss = compute(logits, squared_error=0.0)
    expected = np.logaddexp(0, exact if wrong else -exact)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 5.0)])
def test_minimiser_of_eq_5_is_the_conditional_expectation(rng, weights):
    """E over t of the loss is least, with gradient 0, where softmax(logits) = E[t]."""
    expectation = jnp.asarray(rng.dirichlet(np.ones(4)), jnp.float32)
    labels = jnp.arange(4)[None, None]  # each class once, weighted by its probability

    @jax.jit
    def compute_risk(logits):
        return sum(
            expectation[k]
            * compute_reconstruction_loss(
                logits[None, None, None],
                labels[..., k : k + 1],
                squared_error=weights[0],
                cross_entropy=weights[1],
            ).total
            for k in range(4)
        )

    best = jnp.log(expectation)
    np.testing.assert_allclose(jax.grad(compute_risk)(best), 0, atol=1e-6)
    for scale in (0.1, 1.0, 10.0):
        other = best + scale * jnp.asarray(rng.normal(size=4), jnp.float32)
        assert compute_risk(other) > compute_risk(best)


def test_mean_divides_by_weights_below_one():
    loss = LossSum(jnp.float32(0.2), jnp.float32(0.4))
    np.testing.assert_allclose(loss.mean, 0.5, rtol=1e-6)


def test_gradients_equal_finite_differences(rng):
    logits = make_logits(rng)

    def compute_both(x):
        refiner = compute_reconstruction_loss(x, LABELS)
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
