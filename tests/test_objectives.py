"""What is trained and validated, against the formulas written out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.data.dataset import Record, Split
from iterinf.errors import UserError
from iterinf.losses import compute_cross_entropy, compute_reconstruction_loss
from iterinf.objectives import (
    make_reconstruction,
    make_refiner_loss,
    make_segmenter_loss,
    make_validation,
    pad_split,
    propose,
    to_unit_range,
)

KEY = jax.random.key(0)
NUM_CLASSES = 3


class Segmenter(nn.Module):
    """One linear layer."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(NUM_CLASSES)(images), {"input": 2 * images}


class Echo(nn.Module):
    """Mixes y with what a scalar makes of h; remembers nothing."""

    @nn.compact
    def __call__(self, candidate, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        return nn.softmax(scale * (candidate.y + candidate.features["input"]))


@pytest.fixture
def batch(rng):
    """Two images with labels, void among them."""
    image = jnp.asarray(rng.uniform(size=(2, 4, 5, 3)), jnp.float32)
    return iterinf.Batch(image, jnp.asarray(rng.integers(0, 4, (2, 4, 5))))


@pytest.fixture
def variables(rng):
    """Of the segmenter."""
    kernel = jnp.asarray(rng.normal(size=(3, NUM_CLASSES)), jnp.float32)
    return {"params": {"Dense_0": {"kernel": kernel, "bias": jnp.arange(3.0)}}}


def apply_segmenter(variables, images):
    """Its logits, written out."""
    layer = variables["params"]["Dense_0"]
    return images @ layer["kernel"] + layer["bias"].reshape(1, 1, 1, 3)


def test_a_proposal_holds_probabilities_features_and_image(batch, variables):
    candidate = propose(Segmenter(), variables, batch.image)
    expected = nn.softmax(apply_segmenter(variables, batch.image))
    np.testing.assert_allclose(candidate.y, expected, atol=1e-6)
    np.testing.assert_array_equal(candidate.features["input"], 2 * batch.image)
    np.testing.assert_array_equal(candidate.image, batch.image)


def test_no_gradient_reaches_the_segmenter_through_a_proposal(batch, variables):
    gradient = jax.grad(
        lambda variables: propose(Segmenter(), variables, batch.image).y[..., 0].sum()
    )(variables)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


def test_the_segmenter_learns_by_cross_entropy(batch, variables):
    compute_loss = make_segmenter_loss(Segmenter())
    found = compute_loss(variables["params"], None, batch, KEY)
    logits = apply_segmenter(variables, batch.image)
    expected = compute_cross_entropy(logits, batch.label)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    assert found.num_pixels == np.sum(batch.label < 3)


@pytest.mark.parametrize("start", ["y", "y_true"])
def test_both_scenarios_of_figure_1(batch, variables, start):
    """Without noise: r of y, or r of the one-hot truth with zeros at void."""
    compute_loss = make_refiner_loss(
        Segmenter(), Echo(), start=start, sigma=0.0, squared_error=0.5
    )
    params = {"scale": jnp.asarray(2.0)}
    found = compute_loss(params, variables, batch, KEY)
    corrupted = {
        "y": nn.softmax(apply_segmenter(variables, batch.image)),
        "y_true": jnp.concatenate([np.eye(3), np.zeros((1, 3))])[batch.label],
    }[start]
    reconstruction = nn.softmax(2.0 * (corrupted + 2 * batch.image))
    expected = compute_reconstruction_loss(
        reconstruction, batch.label, squared_error=0.5
    )
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    assert found.num_pixels == expected.num_pixels


def test_noise_has_its_sigma_and_its_key(batch, variables):
    """Its square is the squared error of what adds its magnitude to the truth."""

    class Noise(nn.Module):
        @nn.compact
        def __call__(self, candidate, *, train=False):
            truth = jnp.eye(3)[:1].reshape(1, 1, 1, 3)
            return truth + jnp.abs(candidate.y - truth)

    image = jnp.zeros((1, 100, 200, 3))
    big = iterinf.Batch(image, jnp.zeros((1, 100, 200), jnp.int32))
    compute_loss = make_refiner_loss(
        Segmenter(), Noise(), start="y_true", sigma=0.5, cross_entropy=0.0
    )
    compute = jax.jit(lambda key: compute_loss({}, variables, big, key).mean)
    first, again, other = (compute(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_allclose(first, 3 * 0.25, rtol=0.03)
    assert first == again != other


def test_an_unknown_start_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="'truth'.*'y', 'y_true'"):
        make_refiner_loss(Segmenter(), Echo(), start="truth", sigma=0.1)


def test_a_reconstruction_reads_the_proposal_without_noise(batch, variables):
    predict = make_reconstruction(Segmenter(), Echo())
    found = predict({"scale": jnp.asarray(2.0)}, variables, batch.image)
    y = nn.softmax(apply_segmenter(variables, batch.image))
    expected = nn.softmax(2.0 * (y + 2 * batch.image))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 5, 7])
def test_validation_is_over_the_whole_split(rng, variables, batch_size):
    """For any batch size: padding is never counted."""
    images = rng.integers(0, 256, (5, 4, 5, 3)).astype(np.uint8)
    labels = rng.integers(0, 4, (5, 4, 5)).astype(np.uint8)
    names = [f"r{i}" for i in range(5)]
    split = Split(lambda i: Record(images[i], labels[i], names[i]), names, range(5))
    validate = make_validation(
        lambda params, frozen, images: apply_segmenter(params, images) + frozen,
        compute_cross_entropy,
        split,
        frozen=jnp.zeros((1, 1, 1, 3)),
        num_classes=3,
        batch_size=batch_size,
    )
    found = validate(variables)
    logits = np.asarray(apply_segmenter(variables, jnp.asarray(images / 255.0, "f")))
    valid = labels < 3
    logs = np.asarray(jax.nn.log_softmax(logits))[valid]
    truth, predictions = labels[valid], logits.argmax(axis=-1)[valid]
    loss = -np.mean(logs[np.arange(truth.size), truth])
    iou = [
        np.sum((truth == k) & (predictions == k))
        / np.sum((truth == k) | (predictions == k))
        for k in range(3)
    ]
    np.testing.assert_allclose(found["validation/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["validation/mean_iou"], np.mean(iou), rtol=1e-5)


def test_unit_range():
    found = to_unit_range(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(found, [0, 0.2, 1], rtol=1e-6)
    assert found.dtype == jnp.float32


def test_a_split_is_padded_by_void_frames(rng):
    images = rng.integers(1, 256, (5, 2, 3, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, (5, 2, 3)).astype(np.uint8)
    padded_images, padded_labels = pad_split(images, labels, 4, void=3)
    assert padded_images.shape == (8, 2, 3, 3)
    np.testing.assert_array_equal(padded_images[:5], images)
    np.testing.assert_array_equal(padded_labels[:5], labels)
    np.testing.assert_array_equal(padded_images[5:], images[:3])
    np.testing.assert_array_equal(padded_labels[5:], 3)
    assert padded_labels.dtype == np.uint8
