"""FC-DenseNet: PyTorch's numbers, what normalises at test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import iterinf
from iterinf.errors import UserError
from tests.fixtures.narrow_fc_densenet import BY_PYTORCH, create_narrow, load_variables


@functools.cache
def compile_apply(**options):
    return jax.jit(create_narrow(**options).apply, static_argnames=("train", "mutable"))


@pytest.mark.parametrize(
    ("name", "channels"),
    [("fc_densenet56", 240), ("fc_densenet67", 368), ("fc_densenet103", 464)],
)
def test_channels_of_pool4(name, channels):
    segmenter = iterinf.create_segmenter(name, num_classes=11)
    images = jnp.zeros((1, 360, 480, 3))
    variables = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    assert set(variables) == {"params"}
    _, features = jax.eval_shape(segmenter.apply, variables, images)
    assert features["pool4"].shape == (1, 22, 30, channels)


@pytest.mark.parametrize("statistics", ["image", "batch"])
def test_equals_pytorch(statistics):
    logits, features = compile_apply(statistics=statistics)(
        load_variables(), BY_PYTORCH["images"]
    )
    for found, name in ((logits, "logits"), (features["pool2"], "pool2")):
        expected = BY_PYTORCH[f"{name}_{statistics}"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_103_equals_pytorch_itself():
    pytest.importorskip(
        "torch", reason="torch is not installed: only the narrow network is compared"
    )
    from tests.fixtures.make_fc_densenet import draw_parameters, run_pytorch

    segmenter = iterinf.create_segmenter("fc_densenet103", num_classes=11)
    parameters = draw_parameters(segmenter, seed=3)
    images = np.random.default_rng(4).uniform(size=(1, 64, 96, 3)).astype(np.float32)
    expected, features = run_pytorch(
        parameters, images, segmenter.blocks, segmenter.bottleneck, statistics="image"
    )
    variables = {"params": unflatten_dict(parameters, sep="/")}
    logits, found = jax.jit(segmenter.apply)(variables, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-4)
    np.testing.assert_allclose(found["pool4"], features["pool4"], rtol=1e-3, atol=1e-3)


def make_images(rng, batch):
    """Images that differ in brightness and contrast."""
    images = rng.uniform(size=(batch, 16, 20, 3)) * rng.uniform(size=(batch, 1, 1, 1))
    return jnp.asarray(images, jnp.float32)


def test_by_image_statistics_an_image_is_scored_alone_as_in_a_batch(rng):
    images, apply = make_images(rng, 10), compile_apply(statistics="image")
    together, _ = apply(load_variables(), images)
    for i in (0, 7):
        alone, _ = apply(load_variables(), images[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-4)


def test_by_batch_statistics_it_is_not(rng):
    images, apply = make_images(rng, 10), compile_apply(statistics="batch")
    together, _ = apply(load_variables(), images)
    alone, _ = apply(load_variables(), images[:1])
    assert np.abs(alone[0] - together[0]).max() > 0.1


def test_one_image_is_a_batch_of_its_own(rng):
    images = make_images(rng, 1)
    by_image, _ = compile_apply(statistics="image")(load_variables(), images)
    by_batch, _ = compile_apply(statistics="batch")(load_variables(), images)
    np.testing.assert_allclose(by_image, by_batch, atol=1e-4)


@pytest.mark.slow
def test_training_normalises_by_the_batch_and_leaves_its_statistics(rng):
    images, variables = make_images(rng, 3), load_variables()
    apply = compile_apply(statistics="running", dropout=0.0)
    (logits, _), left = apply(variables, images, train=True, mutable=("statistics",))
    by_batch, _ = compile_apply(statistics="batch")(variables, images)
    np.testing.assert_allclose(logits, by_batch, atol=1e-4)
    running, _ = apply(variables | left, images)
    np.testing.assert_allclose(running, by_batch, atol=1e-4)
    other, _ = apply(variables | left, images[:1])
    np.testing.assert_allclose(other[0], by_batch[0], atol=1e-4)


def test_running_statistics_not_estimated_yet_are_the_images(rng):
    images = make_images(rng, 3)
    running, _ = compile_apply(statistics="running")(load_variables(), images)
    by_image, _ = compile_apply(statistics="image")(load_variables(), images)
    np.testing.assert_array_equal(running, by_image)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(rng):
    images = make_images(rng, 2)
    small = {"blocks": (1,), "bottleneck": 1, "dropout": 0.0}
    variables = create_narrow(**small).init(jax.random.key(0), images)

    def differentiate(**options):
        segmenter = create_narrow(**small, **options)

        def compute_loss(variables):
            logits, _ = segmenter.apply(variables, images, train=True)
            return jnp.mean(jnp.square(logits))

        return jax.jit(jax.grad(compute_loss))(variables)

    kept, computed = differentiate(), differentiate(rematerialise=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        kept,
        computed,
    )


def test_unknown_statistics():
    with pytest.raises(UserError, match="statistics 'moving'.*image"):
        create_narrow(statistics="moving")
