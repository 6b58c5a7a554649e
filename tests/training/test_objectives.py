"""What is trained and validated, against the formulas written out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.data.dataset import Record, Split
from iterinf.errors import UserError
from iterinf.refiners.refiner import Refiner
from iterinf.training.losses import compute_cross_entropy, compute_reconstruction_loss
from iterinf.training.objectives import (
    combine,
    make_reconstruction,
    make_refiner_loss,
    make_segmenter_loss,
    propose,
    set_scalars,
    to_unit_range,
)
from iterinf.training.validation import batch_split, make_validation

KEY = jax.random.key(0)
NUM_CLASSES = 3


class Segmenter(nn.Module):
    """One linear layer."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(NUM_CLASSES)(images), {"input": 2 * images}


class Echo(Refiner):
    """Mixes y with what a scalar makes of h; remembers nothing."""

    num_classes: int = NUM_CLASSES

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def condition(self, candidate):
        return candidate.features["input"]

    def compute_logits(self, y, condition):
        return self.scale * (y + condition)


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
    candidate = propose(Segmenter(), variables, batch)
    expected = nn.softmax(apply_segmenter(variables, batch.image))
    np.testing.assert_allclose(candidate.y, expected, atol=1e-6)
    np.testing.assert_array_equal(candidate.features["input"], 2 * batch.image)
    np.testing.assert_array_equal(candidate.image, batch.image)


def test_outputs_of_a_batch_stand_in_for_the_segmenter(batch, rng):
    """It does not run: its variables are not there."""

    class Broken(Segmenter):
        num_classes: int = NUM_CLASSES
        dtype: Any = jnp.float32

    y = jnp.asarray(rng.dirichlet(np.ones(3), (2, 4, 5)), jnp.float32)
    pool1 = jnp.ones((2, 2, 2, 1), jnp.float16)
    given = batch._replace(outputs={"probabilities": y, "pool1": pool1})
    candidate = propose(Broken(), {}, given)
    np.testing.assert_allclose(candidate.y, y, atol=1e-6)
    assert candidate.features.keys() == {"input", "pool1"}
    np.testing.assert_array_equal(candidate.features["pool1"], np.ones((2, 2, 2, 1)))
    compute_loss = make_refiner_loss(Broken(), Echo(), start="y", sigma=0.0)
    params = {"refiner": {"scale": jnp.asarray(2.0)}}
    found = compute_loss(params, {}, given, KEY)
    logits = 2.0 * (y + batch.image)
    expected = compute_reconstruction_loss(logits, batch.label)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)


def test_trained_parameters_take_the_place_of_frozen_ones():
    one, two, three, four = jnp.eye(4)
    frozen = {"segmenter": {"params": one, "statistics": two}}
    found = combine({"refiner": three}, frozen)
    assert found["segmenter"]["params"] is one
    assert found["refiner"]["params"] is three
    found = combine({"refiner": three, "segmenter": four}, frozen)
    assert found["segmenter"]["params"] is four
    assert found["segmenter"]["statistics"] is two


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
    params = {"refiner": {"scale": jnp.asarray(2.0)}}
    found = compute_loss(params, {"segmenter": variables}, batch, KEY)
    corrupted = {
        "y": nn.softmax(apply_segmenter(variables, batch.image)),
        "y_true": jnp.concatenate([np.eye(3), np.zeros((1, 3))])[batch.label],
    }[start]
    logits = 2.0 * (corrupted + 2 * batch.image)
    expected = compute_reconstruction_loss(logits, batch.label, squared_error=0.5)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    assert found.num_pixels == expected.num_pixels


def test_end_to_end_the_gradient_reaches_the_segmenter(batch, variables):
    """That of Eq. 5 through r, y and h, and of the cross-entropy of y."""
    params = {"refiner": {"scale": jnp.asarray(2.0)}, "segmenter": variables["params"]}
    compute_loss = make_refiner_loss(
        Segmenter(), Echo(), start="y", sigma=0.0, proposal_cross_entropy=0.3
    )

    def compute_by_hand(params):
        logits = apply_segmenter({"params": params["segmenter"]}, batch.image)
        y = nn.softmax(logits)
        r = params["refiner"]["scale"] * (y + 2 * batch.image)
        own = compute_cross_entropy(logits, batch.label).total
        return compute_reconstruction_loss(r, batch.label).total + 0.3 * own

    def compute(params):
        return compute_loss(params, {"segmenter": variables}, batch, KEY).total

    found, expected = (jax.grad(f)(params) for f in (compute, compute_by_hand))
    for leaf, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-4)
        assert np.abs(other).max() > 0.01


def test_noise_has_its_sigma_and_its_key(batch, variables):
    """A logit that is the square of the noise has its variance as mean gradient."""

    class Noise(Refiner):
        def setup(self):
            self.scale = self.param("scale", nn.initializers.zeros, ())

        def condition(self, candidate):
            del candidate

        def compute_logits(self, y, condition):
            del condition
            noise = y - jnp.eye(3)[:1].reshape(1, 1, 1, 3)
            return self.scale * jnp.square(noise).at[..., 1:].set(0)

    image = jnp.zeros((1, 100, 200, 3))
    big = iterinf.Batch(image, jnp.zeros((1, 100, 200), jnp.int32))
    compute_loss = make_refiner_loss(
        Segmenter(), Noise(NUM_CLASSES), start="y_true", sigma=0.5, squared_error=0.0
    )
    frozen = {"segmenter": variables}

    @jax.jit
    @jax.grad
    def compute(scale, key):
        params = {"refiner": {"scale": scale}}
        return compute_loss(params, frozen, big, key).mean

    first, again, other = (compute(0.0, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_allclose(first, -2 / 3 * 0.25, rtol=0.03)  # 1 - r = 2 / 3
    assert first == again != other


def test_the_loss_looks_through_several_iterations(batch, variables):
    compute_loss = make_refiner_loss(
        Segmenter(), Echo(), start="y", sigma=0.0, num_iterations=3
    )
    params = {"refiner": {"scale": jnp.asarray(2.0)}}
    y = nn.softmax(apply_segmenter(variables, batch.image))
    for _ in range(3):
        logits = 2.0 * (y + 2 * batch.image)
        y = nn.softmax(logits)
    expected = compute_reconstruction_loss(logits, batch.label)
    found = compute_loss(params, {"segmenter": variables}, batch, KEY)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    predict = make_reconstruction(Segmenter(), Echo(), 3)
    found = predict(params, {"segmenter": variables}, batch)
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_numbers_of_a_refiner_are_replaced(variables):
    networks = {
        "segmenter": variables,
        "refiner": {"params": {"width": jnp.float32(3), "kernel": jnp.ones((2, 2))}},
    }
    found = set_scalars(networks, {"width": 5.0})
    assert found["refiner"]["params"]["width"] == 5
    assert (
        found["refiner"]["params"]["kernel"] is networks["refiner"]["params"]["kernel"]
    )
    assert networks["refiner"]["params"]["width"] == 3
    for name in ("kernel", "weight"):
        with pytest.raises(UserError, match=f"'{name}'; known: width"):
            set_scalars(networks, {name: 1.0})


@pytest.mark.parametrize(
    ("option", "known"), [("start", "y, y_true"), ("constraint", "none, clip, softmax")]
)
def test_an_unknown_choice_is_answered_with_the_known_ones(option, known):
    options = {"start": "y", "sigma": 0.1} | {option: "other"}
    with pytest.raises(UserError, match=f"{option} 'other'; known: {known}"):
        make_refiner_loss(Segmenter(), Echo(), **options)


def test_recycling_takes_the_loss_at_its_own_iterates(batch, variables):
    """Its value and gradient are the mean of those at y_0, y_1 and y_2, held fixed."""
    frozen = {"segmenter": variables}
    compute_loss = make_refiner_loss(
        Segmenter(),
        Echo(),
        start="y",
        sigma=0.0,
        num_recycles=2,
        recycle_step_size=0.3,
    )
    y = nn.softmax(apply_segmenter(variables, batch.image))
    iterates = [y]
    for _ in range(2):
        r = nn.softmax(2.0 * (iterates[-1] + 2 * batch.image))
        iterates.append(iterates[-1] + 0.3 * (r - iterates[-1]))

    def compute_by_hand(scale):
        losses = [
            compute_reconstruction_loss(scale * (y + 2 * batch.image), batch.label)
            for y in iterates
        ]
        return sum(loss.mean for loss in losses) / 3

    def compute(scale):
        params = {"refiner": {"scale": scale}}
        return compute_loss(params, frozen, batch, KEY).mean

    found, expected = (
        jax.value_and_grad(f)(jnp.float32(2)) for f in (compute, compute_by_hand)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_self_conditioning_takes_the_loss_on_the_way_to_r(batch, variables, share):
    """Its mean over keys, and the gradient's, is that over u of y + u (r(y) - y)."""
    frozen, scale = {"segmenter": variables}, jnp.float32(2)
    compute_loss = make_refiner_loss(
        Segmenter(), Echo(), start="y", sigma=0.0, self_conditioning=share
    )
    y = nn.softmax(apply_segmenter(variables, batch.image))
    r = nn.softmax(scale * (y + 2 * batch.image))

    def compute(scale, key):
        return compute_loss({"refiner": {"scale": scale}}, frozen, batch, key).mean

    def compute_at(scale, u):  # y and r are held
        logits = scale * (y + u * (r - y) + 2 * batch.image)
        return compute_reconstruction_loss(logits, batch.label).mean

    def average(function, over):
        compute = jax.vmap(jax.value_and_grad(function), (None, 0))
        return np.mean(jax.jit(compute)(scale, over), axis=1)

    found = average(compute, jax.random.split(KEY, 1000))
    start = average(compute_at, jnp.zeros(1))
    way = average(compute_at, (jnp.arange(50) + 0.5) / 50)
    expected = share * (way - start)
    np.testing.assert_allclose(found - start, expected, rtol=0.1)


def test_a_reconstruction_reads_the_proposal_without_noise(batch, variables):
    predict = make_reconstruction(Segmenter(), Echo())
    params = {"refiner": {"scale": jnp.asarray(2.0)}}
    found = predict(params, {"segmenter": variables}, batch)
    y = nn.softmax(apply_segmenter(variables, batch.image))
    np.testing.assert_allclose(found, 2.0 * (y + 2 * batch.image), atol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 5, 7])
def test_validation_is_over_the_whole_split(rng, variables, batch_size):
    """For any batch size: padding is never counted."""
    images = rng.integers(0, 256, (5, 4, 5, 3)).astype(np.uint8)
    labels = rng.integers(0, 4, (5, 4, 5)).astype(np.uint8)
    names = [f"r{i}" for i in range(5)]
    split = Split(lambda i: Record(images[i], labels[i], names[i]), names, range(5))
    validate = make_validation(
        lambda params, frozen, batch: apply_segmenter(params, batch.image) + frozen,
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
    image = jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
    batch = iterinf.Batch(image, jnp.zeros((1, 1, 1), jnp.int32))
    found = to_unit_range(batch).image
    np.testing.assert_allclose(found.ravel(), [0, 0.2, 1], rtol=1e-6)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("batch_size", [4, 12])
def test_a_split_is_filled_up_by_void_images(rng, batch_size):
    images = rng.integers(1, 256, (5, 2, 3, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, (5, 2, 3)).astype(np.uint8)
    split = iterinf.Batch(images, labels, {"pool1": images[:, :1, :1]})
    found = batch_split(split, batch_size, void=3)
    num_batches = -(-5 // batch_size)
    assert found.image.shape == (num_batches, batch_size, 2, 3, 3)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    np.testing.assert_array_equal(flat.image[:5], images)
    np.testing.assert_array_equal(flat.image[5:8], images[:3])
    np.testing.assert_array_equal(flat.label[:5], labels)
    np.testing.assert_array_equal(flat.label[5:], 3)
    np.testing.assert_array_equal(flat.outputs["pool1"], flat.image[:, :1, :1])
    assert flat.label.dtype == np.uint8
    assert (labels < 3).all()
    pairs = batch_split(split, batch_size, void=3, multiple=2)
    assert len(pairs.label) == 2
    assert (pairs.label.reshape(-1, 2, 3)[5:] == 3).all()
