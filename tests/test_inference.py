"""The loop of Eq. 6: closed forms, and plain Python loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf

STEP_SIZES = (0.01, 0.1, 0.5, 1.0)


def make_probabilities(rng, shape=(2, 8, 10, 3)):
    """Random points of the simplex."""
    return nn.softmax(jnp.asarray(rng.normal(size=shape), jnp.float32))


def mix(y):
    """A nonlinear r that keeps the simplex: neighbours vote, then a softmax."""
    return nn.softmax(3 * (jnp.roll(y, 1, axis=1) + y))


def iterate(reconstruct, y, step_size, num_iterations):
    """Eq. 6 in NumPy: y after every update."""
    y, trajectory = np.asarray(y), []
    for _ in range(num_iterations):
        y = np.clip(y + step_size * (np.asarray(reconstruct(y)) - y), 0, 1)
        trajectory.append(y)
    return np.stack(trajectory)


@pytest.fixture(scope="module")
def dae():
    """A small DAE's reconstruction at a random candidate, and that candidate's y."""
    rng = np.random.default_rng(0)
    refiner = iterinf.create_refiner(
        "dae", num_classes=3, widths=(4, 5), features=("pool1",)
    )
    y = make_probabilities(rng)
    features = {"pool1": jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32)}
    candidate = iterinf.Candidate(y, features, y)
    shapes = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32), shapes
    )
    condition = refiner.apply(variables, candidate, method="condition")
    return lambda y: refiner.apply(variables, y, condition, method="reconstruct"), y


@pytest.mark.parametrize("step_size", STEP_SIZES)
def test_a_constant_reconstruction_is_approached_geometrically(rng, step_size):
    y, target = make_probabilities(rng), make_probabilities(rng)
    found = iterinf.refine(
        lambda _: target, y, step_size=step_size, num_iterations=6, observe=lambda y: y
    )
    for t in range(6):
        expected = target + (1 - step_size) ** (t + 1) * (y - target)
        np.testing.assert_allclose(found.observations[t], expected, atol=1e-6)
    np.testing.assert_array_equal(found.y, found.observations[-1])


def test_a_linear_reconstruction_contracts_at_its_rate(rng):
    y = make_probabilities(rng)
    mean = y.mean(axis=-1, keepdims=True)
    found = iterinf.refine(
        lambda y: 0.5 * (y + mean), y, step_size=0.4, num_iterations=5
    )
    np.testing.assert_allclose(found.y, mean + 0.8**5 * (y - mean), atol=1e-6)


def test_step_size_zero_returns_y_and_one_returns_the_reconstruction(rng):
    y = make_probabilities(rng)
    np.testing.assert_array_equal(iterinf.refine_step(mix, y, 0.0), y)
    np.testing.assert_allclose(iterinf.refine_step(mix, y, 1.0), mix(y), atol=1e-7)


def test_a_step_that_leaves_the_unit_interval_is_clipped():
    y = jnp.array([0.2, 0.8])
    found = iterinf.refine_step(lambda y: jnp.array([1.0, 0.0]), y, 2.0)
    np.testing.assert_array_equal(found, [1.0, 0.0])


def test_steps_up_to_one_stay_on_the_simplex(rng):
    y = iterinf.refine(mix, make_probabilities(rng), step_size=0.3, num_iterations=9).y
    np.testing.assert_allclose(y.sum(axis=-1), 1, atol=1e-5)


def test_no_iteration_returns_y(rng):
    y = make_probabilities(rng)
    found = iterinf.refine(mix, y, step_size=0.5, num_iterations=0)
    np.testing.assert_array_equal(found.y, y)
    observed = iterinf.sweep(
        mix, y, step_sizes=STEP_SIZES, num_iterations=0, observe=lambda y: y
    )
    assert observed.shape == (4, 0, *y.shape)


def test_refine_and_sweep_equal_a_python_loop(dae):
    reconstruct, y = dae

    @jax.jit
    def compute(y):
        refined = [
            iterinf.refine(reconstruct, y, step_size=s, num_iterations=7).y
            for s in STEP_SIZES
        ]
        swept = iterinf.sweep(
            reconstruct,
            y,
            step_sizes=STEP_SIZES,
            num_iterations=7,
            observe=lambda y: y,
        )
        return refined, swept

    refined, swept = compute(y)
    assert swept.shape == (4, 7, *y.shape)
    reconstruct = jax.jit(reconstruct)
    for s, step_size in enumerate(STEP_SIZES):
        expected = iterate(lambda y: reconstruct(jnp.asarray(y)), y, step_size, 7)
        np.testing.assert_allclose(swept[s], expected, atol=1e-5)
        np.testing.assert_allclose(refined[s], expected[-1], atol=1e-5)
    assert np.abs(swept[-1, -1] - y).max() > 0.1


def test_jit_changes_nothing(rng):
    y = make_probabilities(rng)

    def run(y):
        return iterinf.refine(mix, y, step_size=0.2, num_iterations=5).y

    np.testing.assert_allclose(jax.jit(run)(y), run(y), atol=1e-6)


def test_observations_are_stacked_by_step_size_then_iteration(rng):
    y = make_probabilities(rng)
    found = iterinf.sweep(
        lambda y: jnp.zeros_like(y),
        y,
        step_sizes=jnp.array([0.1, 0.5]),
        num_iterations=3,
        observe=lambda y: {"total": y.sum(), "labels": jnp.argmax(y, axis=-1)},
    )
    rate = 1 - np.array([[0.1], [0.5]])
    expected = float(y.sum()) * rate ** np.arange(1, 4)
    np.testing.assert_allclose(found["total"], expected, rtol=1e-5)
    assert found["labels"].shape == (2, 3, 2, 8, 10)


def test_the_first_reconstruction_serves_all_step_sizes(rng):
    matrix, y = rng.normal(size=(256, 256)), rng.uniform(size=(64, 256))

    def count_flops(num_step_sizes):
        run = jax.jit(
            lambda y: iterinf.sweep(
                lambda y: y @ matrix,
                y,
                step_sizes=np.linspace(0.1, 1, num_step_sizes),
                num_iterations=1,
                observe=jnp.sum,
            )
        )
        return run.lower(y).compile().cost_analysis()["flops"]

    product = 2 * 64 * 256 * 256
    assert product < count_flops(1) < count_flops(20) < 1.5 * product


def test_another_step_rule_takes_the_place_of_the_update(rng):
    y = make_probabilities(rng)
    found = iterinf.refine(
        mix,
        y,
        step_size=0.25,
        num_iterations=4,
        step=lambda reconstruct, y, step_size: y - step_size,
    )
    np.testing.assert_allclose(found.y, y - 1, atol=1e-6)


def test_the_gradient_through_the_loop_is_the_product_of_its_steps(rng, dae):
    y = make_probabilities(rng)
    slope = jax.grad(
        lambda step_size: iterinf.refine(
            lambda y: jnp.zeros_like(y), y, step_size=step_size, num_iterations=3
        ).y.sum()
    )(0.25)
    np.testing.assert_allclose(slope, -3 * 0.75**2 * float(y.sum()), rtol=1e-5)
    reconstruct, y = dae
    gradient = jax.jit(
        jax.grad(
            lambda y: jnp.square(
                iterinf.refine(reconstruct, y, step_size=0.1, num_iterations=4).y
            ).sum()
        )
    )(y)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_a_reconstruction_of_another_shape_is_refused(rng):
    y = make_probabilities(rng)
    with pytest.raises(ValueError, match="same shape"):
        iterinf.refine(lambda y: y[:1], y, step_size=0.1, num_iterations=2)
