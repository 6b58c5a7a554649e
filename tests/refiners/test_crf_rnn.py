"""CRF-RNN: where it starts, how many parameters it has, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.training.objectives import make_refiner_loss
from iterinf.types import Batch, Candidate
from tests.fixtures.scenes import infer_in_numpy, make_scene


def make_candidate(rng, batch=2, k=3):
    scenes = [make_scene(rng, k=k) for _ in range(batch)]
    y, image = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    return Candidate(jnp.asarray(y), {}, jnp.asarray(image / np.float32(255)))


def iterate(refiner, variables, candidate, num_iterations):
    condition = refiner.apply(variables, candidate, method="condition")
    return iterinf.refine(
        lambda y: refiner.apply(variables, y, condition, method="reconstruct"),
        candidate.y,
        step_size=1.0,
        num_iterations=num_iterations,
    ).y


@pytest.mark.parametrize("k", [2, 11])
def test_number_of_parameters(rng, k):
    refiner = create_refiner("crf_rnn", num_classes=k)
    candidate = make_candidate(rng, 1, k)
    variables = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 2 * k + k * k + 3


def test_starts_as_the_dense_crf_of_its_weights(rng):
    options = {"spatial_weight": 2.0, "bilateral_weight": 4.0, "color_width": 20.0}
    candidate = make_candidate(rng)
    refiner = create_refiner("crf_rnn", num_classes=3, exact=True, **options)
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    found = jax.jit(lambda v, c: iterate(refiner, v, c, 10))(variables, candidate)
    expected = iterinf.dense_crf(
        candidate.y, candidate.image, bilateral_width=160.0, exact=True, **options
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_and_compatibility_are_those_of_mean_field(rng):
    """W_m = C diag(w_m); y of zeros and ones, whose unaries reach down to 1e-20."""
    candidate = make_candidate(rng)
    y = np.eye(3, dtype=np.float32)[np.asarray(candidate.y).argmax(axis=-1)]
    refiner = create_refiner("crf_rnn", num_classes=3, exact=True, color_width=20.0)
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    drawn = {
        "spatial_weight": rng.uniform(10, 60, 3),
        "bilateral_weight": rng.uniform(10, 60, 3),
        "compatibility": np.eye(3) + rng.normal(size=(3, 3)) / 2,
    }
    drawn = {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}
    variables = {"params": variables["params"] | drawn}
    found = jax.jit(lambda v, c: iterate(refiner, v, c, 2))(
        variables, candidate._replace(y=jnp.asarray(y))
    )
    weights = [
        drawn["compatibility"] @ np.diag(drawn[name])
        for name in ("spatial_weight", "bilateral_weight")
    ]
    image = np.round(255 * np.asarray(candidate.image[0]))
    expected = infer_in_numpy(y[0], image, weights, 2, (3, 160, 20), lowest=1e-20)
    np.testing.assert_allclose(found[0], expected, atol=1e-3)
    assert np.mean(expected.argmax(-1) != y[0].argmax(-1)) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_are_those_of_finite_differences(rng, exact):
    """Of the loss through 5 iterations; widths are not trained."""
    refiner = create_refiner("crf_rnn", num_classes=3, exact=exact, color_width=20.0)
    candidate = make_candidate(rng)
    params = jax.jit(refiner.init)(jax.random.key(0), candidate)["params"]
    label = rng.integers(3, size=candidate.y.shape[:3])
    compute_loss = make_refiner_loss(
        create_segmenter("precomputed", num_classes=3),
        refiner,
        start="y",
        sigma=0.0,
        squared_error=0.0,
        num_iterations=5,
    )
    outputs = {"probabilities": candidate.y}
    batch = Batch(candidate.image, jnp.asarray(label), outputs)

    @jax.jit
    def compute(params):
        return compute_loss({"refiner": params}, {}, batch, jax.random.key(0)).mean

    gradient = jax.jit(jax.grad(compute))(params)
    for name in params:
        way = jnp.asarray(rng.normal(size=jnp.shape(params[name])), jnp.float32)
        found, eps = float(jnp.vdot(gradient[name], way)), 3e-2
        if name.endswith("width"):
            assert found == 0
            continue
        ends = [
            compute(params | {name: params[name] + sign * eps * way})
            for sign in (1, -1)
        ]
        numeric = float(ends[0] - ends[1]) / (2 * eps)
        np.testing.assert_allclose(found, numeric, rtol=0.03, atol=3e-4)
        assert abs(found) > 1e-4


def test_a_batch_is_its_members(rng):
    candidate = make_candidate(rng, 4)
    refiner = create_refiner("crf_rnn", num_classes=3, exact=True)
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    run = jax.jit(lambda v, c: iterate(refiner, v, c, 5))
    together = run(variables, candidate)
    for i in range(4):
        alone = jax.tree.map(lambda x, i=i: x[i : i + 1], candidate)
        np.testing.assert_allclose(together[i], run(variables, alone)[0], atol=1e-4)
