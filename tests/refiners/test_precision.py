"""Networks in bfloat16 beside the same networks, of the same parameters, in float32."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.training.losses import compute_cross_entropy, compute_reconstruction_loss

pytestmark = pytest.mark.slow

SIZE = (64, 96)
NUM_CLASSES = 5
SEGMENTERS: dict[str, dict] = {
    "fcn8": {"width": 1 / 8, "padding": "same"},
    "fc_densenet103": {
        "blocks": (2, 3),
        "bottleneck": 3,
        "growth_rate": 8,
        "first_channels": 16,
    },
}


class Bounds(NamedTuple):
    """How far bfloat16 may be from float32."""

    largest: float  # difference of a probability
    mean: float  # difference of probabilities
    changed: float  # share of the pixels that get another label
    margin: float  # between their two highest probabilities in float32
    gradients: dict[str, float]  # |g16 - g32| / |g32|, by what g is the gradient in


# About twice what is measured at most over four seeds, but for the biases of FCN-8,
# which at the tests' seed are off by .018. A rounding that moves a switch of the DAE
# moves a value by a pixel: there, probabilities differ by .1 and more. With sums over
# pixels in bfloat16, biases would be off by .08 to 1.3, scales by .06 to .08.
BOUNDS = {
    "fcn8": Bounds(0.01, 0.001, 0.03, 0.005, {"kernel": 0.2, "bias": 0.05}),
    "fc_densenet103": Bounds(
        0.05, 0.005, 0.02, 0.06, {"kernel": 0.03, "bias": 0.035, "scale": 0.045}
    ),
    "dae": Bounds(0.3, 0.008, 0.025, 0.3, {"kernel": 0.4, "bias": 0.06}),
}
LAST = {"fcn8": "upsample", "fc_densenet103": "score", "dae": "up_2"}


class Comparison(NamedTuple):
    """What a network of the name gives, by the dtype of its computation."""

    name: str
    logits: dict[str, jax.Array]  # b h w k
    gradients: dict[str, dict]  # of the loss in the parameters
    logit_gradients: dict[str, jax.Array]  # of the loss in the logits

    @property
    def probabilities(self):
        """In float32 and in bfloat16."""
        return [np.asarray(jax.nn.softmax(logits)) for logits in self.logits.values()]


def draw_smooth(rng, channels, cell=8):
    """Two maps that are random every 8 pixels, and smooth between these."""
    height, width = SIZE
    coarse = rng.normal(size=(2, height // cell + 1, width // cell + 1, channels))
    coarse = jnp.asarray(coarse, jnp.float32)
    return jax.image.resize(coarse, (2, *SIZE, channels), "cubic")


def draw_scene(rng):
    """Smooth label maps; images and a prediction y that show them, with noise."""
    label = jnp.argmax(draw_smooth(rng, NUM_CLASSES), axis=-1)
    noise = jnp.asarray(rng.normal(size=(2, *SIZE, 3 + NUM_CLASSES)), jnp.float32)
    colors = jnp.asarray(rng.uniform(0.2, 0.8, (NUM_CLASSES, 3)), jnp.float32)
    image = jnp.clip(colors[label] + 0.1 * noise[..., :3], 0, 1)
    y = jax.nn.softmax(2 * jax.nn.one_hot(label, NUM_CLASSES) + noise[..., 3:])
    pool2 = draw_smooth(rng, 12)[:, ::4, ::4]
    return iterinf.Candidate(y, {"input": image, "pool2": pool2}, image), label


def create_segmenter(name, candidate, dtype):
    """The initial parameters, by a key, and the logits, by parameters."""
    options = SEGMENTERS[name] | {"dtype": dtype}
    segmenter = iterinf.create_segmenter(name, num_classes=NUM_CLASSES, **options)

    def compute_logits(params):
        return segmenter.apply({"params": params}, candidate.image)[0]

    return lambda key: segmenter.init(key, candidate.image)["params"], compute_logits


def create_dae(candidate, dtype):
    """As `create_segmenter`; adds to log y, but what it adds is not zero at first."""
    options = {
        "num_classes": NUM_CLASSES,
        "widths": (16, 32, 64),
        "features": ("input", "pool2"),
        "dtype": dtype,
    }
    random = iterinf.create_refiner("dae", **options)
    dae = iterinf.create_refiner("dae", **options, start_as_identity=True)

    def compute_logits(params):
        variables = {"params": params}
        condition = dae.apply(variables, candidate, method="condition")
        return dae.apply(variables, candidate.y, condition, method="compute_logits")

    return lambda key: random.init(key, candidate)["params"], compute_logits


@pytest.fixture(scope="module", params=BOUNDS)
def comparison(request):
    """A network with the same parameters, of float32, in both computations."""
    name = request.param
    candidate, label = draw_scene(np.random.default_rng(0))
    if name == "dae":
        create, measure = create_dae, compute_reconstruction_loss
    else:
        create, measure = partial(create_segmenter, name), compute_cross_entropy

    def run(params, dtype):
        logits, pull_back = jax.vjp(create(candidate, dtype)[1], params)
        by_logits = jax.grad(lambda x: measure(x, label).mean)(logits)
        return logits, pull_back(by_logits)[0], by_logits

    params = jax.jit(create(candidate, jnp.float32)[0])(jax.random.key(0))
    run = jax.jit(run, static_argnums=1)
    results = {dtype: run(params, dtype) for dtype in ("float32", "bfloat16")}
    return Comparison(
        name, *({dtype: results[dtype][i] for dtype in results} for i in range(3))
    )


def test_bfloat16_gives_nearly_the_probabilities_of_float32(comparison):
    """|p16 - p32|, p = softmax(logits): below the bounds, and not zero."""
    bounds = BOUNDS[comparison.name]
    assert {logits.dtype.name for logits in comparison.logits.values()} == {"float32"}
    expected, found = comparison.probabilities
    difference = np.abs(found - expected)
    assert 1e-5 < difference.mean() < bounds.mean
    assert difference.max() < bounds.largest
    assert expected.std(axis=(0, 1, 2)).max() > 10 * bounds.mean


def test_bfloat16_gives_the_labels_of_float32_where_these_are_clear(comparison):
    """Few pixels have argmax p16 != argmax p32; in p32, two classes are near there."""
    bounds = BOUNDS[comparison.name]
    expected, found = comparison.probabilities
    changed = expected.argmax(axis=-1) != found.argmax(axis=-1)
    assert changed.mean() < bounds.changed
    ordered = np.sort(expected, axis=-1)
    margins = ordered[..., -1] - ordered[..., -2]
    assert np.all(margins[changed] < bounds.margin)
    assert np.median(margins) > bounds.margin


def group_by_kind(gradients):
    """Gradients in all kernels, all biases and all scales, each as one vector."""
    groups = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        leaf = np.asarray(leaf, np.float64).ravel()
        groups.setdefault(path[-1].key, []).append(leaf)
    return {kind: np.concatenate(leaves) for kind, leaves in groups.items()}


def test_bfloat16_gives_nearly_the_gradient_of_float32(comparison):
    """|g16 - g32| / |g32| is below the bounds: all kernels, all biases, all scales."""
    leaves = jax.tree.leaves(comparison.gradients["bfloat16"])
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    bounds = BOUNDS[comparison.name].gradients
    expected, found = map(group_by_kind, comparison.gradients.values())
    assert expected.keys() == found.keys() == bounds.keys()
    for kind, bound in bounds.items():
        difference = np.linalg.norm(found[kind] - expected[kind])
        assert 1e-4 < difference / np.linalg.norm(expected[kind]) < bound, kind


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_of_the_last_bias_is_the_sum_over_pixels(comparison, dtype):
    """dL/db = sum_pixels dL/dlogits, to 3% of its norm.

    Rounding each pixel's part to bfloat16 changes the sum by .01%. Summing in bfloat16,
    which has 8 bits, would lose parts beside the sum so far: 36% to 42% of the norm.
    """
    parts = np.asarray(comparison.logit_gradients[dtype], np.float64)
    expected = parts.sum(axis=(0, 1, 2))
    found = comparison.gradients[dtype][LAST[comparison.name]]["bias"]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    rounded = parts.astype(jnp.bfloat16).astype(np.float64).sum(axis=(0, 1, 2))
    assert np.linalg.norm(rounded - expected) < 0.01 * np.linalg.norm(expected)
    assert error < 0.03
