"""Segmenters: shapes, parameter counts, and where features and logits lie."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.errors import UserError

DENSE = {"blocks": (1, 2), "bottleneck": 1, "growth_rate": 2, "first_channels": 3}
SMALL: dict[str, dict] = {"fcn8": {"width": 1 / 64}}  # options by name, else DENSE
PARAMETERS = {  # of 11 classes, by default
    "fcn8": 134_348_962,
    "fc_densenet56": 1_376_795,
    "fc_densenet67": 3_463_243,
    "fc_densenet103": 9_322_091,
}
PADDINGS = ["same", "published"]
SIZE = (256, 256)  # leaves 90 pixels, the reach of pool5, around the middle


def create_small(name="fcn8", num_classes=5, **options):
    """A network that initialises in no time."""
    return iterinf.create_segmenter(
        name, num_classes=num_classes, **SMALL.get(name, DENSE) | options
    )


def draw(segmenter, size):
    """Random variables for images of a size; initialising them compiles for long."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    rng = np.random.default_rng(0)

    def draw_leaf(leaf):
        scale = math.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    return jax.tree.map(draw_leaf, shapes)


def make_bilinear(shape):
    """Kernel of a transposed convolution that interpolates, [2s 2s k k]."""
    size, _, classes, _ = shape
    stride = size // 2
    ramp = [(1 + i) / stride - 0.5 / stride for i in range(stride)]
    ramp = np.array(ramp + ramp[::-1])
    return np.einsum("i,j,cd->ijcd", ramp, ramp, np.eye(classes))


def fill_positive(shapes, rng=None):
    """Kernels that no ReLU ever cuts: constant, or random; biases of zero."""

    def fill(path, leaf):
        if path[-1].key == "bias":
            return np.zeros(leaf.shape, np.float32)
        if path[-2].key in ("score2", "score4", "upsample"):
            return make_bilinear(leaf.shape).astype(np.float32)
        kernel = np.ones(leaf.shape) if rng is None else rng.uniform(0, 2, leaf.shape)
        return (kernel / math.prod(leaf.shape[:-1])).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def compile_small(padding):
    """A narrow FCN-8, the shapes of its variables, and its compiled application."""
    segmenter = create_small(padding=padding)
    image = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(segmenter.init, jax.random.key(0), image)
    return segmenter, shapes, jax.jit(segmenter.apply)


def find_centroid(response):
    """Mean row and column of a map [h w], weighted by its values."""
    rows, columns = np.indices(response.shape)
    return np.array([(rows * response).sum(), (columns * response).sum()]) / (
        response.sum()
    )


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_logits_have_the_size_of_the_image(name, size):
    segmenter = create_small(name)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    logits, features = jax.eval_shape(segmenter.apply, variables, images)
    assert logits.shape == (2, *size, 5)
    assert logits.dtype == jnp.float32
    for level, feature in features.items():
        power = 0 if level == "input" else int(level.removeprefix("pool"))
        offset = segmenter.feature_offset if power else 0
        expected = tuple((n + 2 * offset) // 2**power for n in size)
        assert feature.shape[:3] == (2, *expected)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    segmenter = iterinf.create_segmenter(name, num_classes=11)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["fcn8", "fc_densenet103"])
def test_dropout_needs_a_key_in_training_alone(name):
    segmenter = create_small(name, dropout=0.5)
    variables = draw(segmenter, (32, 32))
    images = jnp.ones((1, 32, 32, 3))
    train = functools.partial(segmenter.apply, variables, images, train=True)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(train)
    apply = jax.jit(lambda key: train(rngs={"dropout": key})[0])
    first, second, again = (apply(jax.random.key(seed)) for seed in (0, 1, 0))
    assert np.any(first != second)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("padding", PADDINGS)
def test_fcn8_has_as_many_parameters_with_either_padding(padding):
    segmenter = iterinf.create_segmenter("fcn8", num_classes=11, padding=padding)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == 134_348_962


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 224), (360, 480)])
def test_sizes_of_fcn8_features(padding, size):
    segmenter = create_small(padding=padding)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    logits, features = jax.eval_shape(segmenter.apply, variables, images)
    assert list(features) == ["input", *(f"pool{level}" for level in range(1, 6))]
    offset = {"same": 0, "published": 99}[padding]
    assert segmenter.feature_offset == offset
    for level in range(1, 6):
        expected = tuple((n + 2 * offset) // 2**level for n in size)
        assert features[f"pool{level}"].shape[1:3] == expected
    assert features["input"].shape == images.shape
    assert logits.shape == (1, *size, 5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_impulse_shows_in_its_cells(padding):
    segmenter, shapes, apply = compile_small(padding)
    variables = fill_positive(shapes)
    for row, column in ((125, 142), (136, 133), (114, 120)):
        image = jnp.zeros((1, *SIZE, 3)).at[0, row, column].set(1.0)
        _, features = apply(variables, image)
        pixel = np.array([row, column]) + segmenter.feature_offset
        for level in range(1, 6):
            response = np.asarray(features[f"pool{level}"][0, :, :, 0])
            middle = (pixel + 0.5) / 2**level - 0.5
            assert np.abs(find_centroid(response) - middle).max() < 0.5


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_are_symmetric_about_the_middle_of_a_cell(padding):
    """Crops that are off by one at any stride would break the symmetry."""
    segmenter, shapes, apply = compile_small(padding)
    row, column = (111, 143) if padding == "same" else (108, 140)
    assert (row + segmenter.feature_offset) % 32 == 15
    image = jnp.zeros((1, *SIZE, 3))
    image = image.at[0, row : row + 2, column : column + 2].set(1.0)
    logits = np.asarray(apply(fill_positive(shapes), image)[0])[0]
    reach = 64
    window = logits[row - reach + 1 : row + reach + 1]
    window = window[:, column - reach + 1 : column + reach + 1]
    scale = window.max()
    np.testing.assert_allclose(window, window[::-1], atol=1e-5 * scale)
    np.testing.assert_allclose(window, window[:, ::-1], atol=1e-5 * scale)
    peak = np.unravel_index(window[..., 0].argmax(), window.shape[:2])
    assert np.abs(np.array(peak) - (reach - 0.5)).max() < 8


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_image_shifted_by_32_pixels_has_shifted_logits(rng, padding):
    _, shapes, apply = compile_small(padding)
    variables = fill_positive(shapes, rng)
    square = jnp.asarray(rng.uniform(size=(8, 8, 3)), jnp.float32)
    image = jnp.zeros((1, *SIZE, 3)).at[0, 100:108, 130:138].set(square)
    logits = np.asarray(apply(variables, image)[0])
    shifted = np.asarray(apply(variables, jnp.roll(image, (32, -32), (1, 2)))[0])
    inside = logits[:, 48:160, 80:208]
    np.testing.assert_allclose(
        shifted[:, 80:192, 48:176], inside, atol=1e-5 * inside.max()
    )
    assert np.ptp(inside) > 0.1 * inside.max()


def test_deconvolutions_start_bilinear():
    strides = {"score2": 2, "score4": 2, "upsample": 8}

    @jax.jit
    def start(key):
        params = create_small().init(key, jnp.zeros((1, 32, 32, 3)))["params"]
        return {name: params[name] for name in strides}

    for name, params in start(jax.random.key(0)).items():
        shape = (2 * strides[name], 2 * strides[name], 5, 5)
        np.testing.assert_allclose(params["kernel"], make_bilinear(shape), atol=1e-6)
        np.testing.assert_array_equal(params["bias"], np.zeros(5))


def test_the_image_is_standardised():
    plain = create_small(padding="same")
    standardised = create_small(
        padding="same", input_mean=(0.1, 0.2, 0.3), input_std=(0.5, 0.25, 2.0)
    )
    variables = draw(plain, (32, 32))
    image = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
    by_hand = (image - jnp.array([[[[0.1, 0.2, 0.3]]]])) / jnp.array(
        [[[[0.5, 0.25, 2]]]]
    )
    np.testing.assert_allclose(
        jax.jit(standardised.apply)(variables, image)[0],
        jax.jit(plain.apply)(variables, by_hand)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'fcn9'.*known: .*fcn8"):
        iterinf.create_segmenter("fcn9", num_classes=11)


def test_an_unknown_option_is_named():
    with pytest.raises(UserError, match=r"'fcn8'.*widht"):
        iterinf.create_segmenter("fcn8", num_classes=11, widht=2)


def test_an_unknown_padding_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'valid'; known: published, same"):
        iterinf.create_segmenter("fcn8", num_classes=11, padding="valid")
