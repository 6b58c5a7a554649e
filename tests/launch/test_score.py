"""The score itself: Eq. 1 and Eq. 6 where the density is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.inference import refine
from launch.score import (
    compute_cosine,
    compute_log_density,
    compute_score,
    create_mixture,
    denoise,
    find_modes,
    sample,
    smooth,
    train_denoiser,
)

SIGMA = 0.08


@pytest.fixture
def _float64():
    """Double precision, for tolerances below the rounding of single precision."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def learned():
    """The reconstruction by a small DAE, trained with Gaussian corruption."""
    return train_denoiser(create_mixture(), SIGMA, jax.random.key(0))


def climb(reconstruct, rng):
    """Eq. 6 from 100 points, each an image of one pixel and two classes."""
    starts = jnp.asarray(rng.uniform(0, 1, (100, 1, 1, 2)), jnp.result_type(float))
    return refine(reconstruct, starts, step_size=0.5, num_iterations=200).y[:, 0, 0]


def measure_distances(points, modes):
    """Distances [points, modes], in plain numpy."""
    return np.linalg.norm(np.asarray(points)[:, None] - np.asarray(modes), axis=-1)


@pytest.mark.usefixtures("_float64")
def test_optimal_denoiser_gives_the_score(rng):
    mixture = create_mixture()
    y = jnp.asarray(rng.uniform(-0.5, 1.5, (500, 2)))
    reconstruction = jax.jit(jax.vmap(partial(denoise, mixture, SIGMA)))(y)
    score = compute_score(smooth(mixture, SIGMA), y)
    assert np.abs(score).max() > 10
    np.testing.assert_allclose(
        (reconstruction - y) / SIGMA**2, score, rtol=0, atol=1e-5
    )


def test_optimal_denoiser_is_the_conditional_mean():
    mixture = create_mixture()
    x = sample(mixture, jax.random.key(0), 200_000)
    y = jnp.array([0.45, 0.4])
    weights = jax.nn.softmax(-jnp.sum((y[None] - x) ** 2, axis=-1) / (2 * SIGMA**2))
    np.testing.assert_allclose(weights @ x, denoise(mixture, SIGMA, y), atol=2e-3)


@pytest.mark.slow
def test_trained_dae_points_along_the_score(learned):
    smoothed = smooth(create_mixture(), SIGMA)
    y = sample(smoothed, jax.random.key(1), 10_000)
    cosine = compute_cosine(learned(y) - y, compute_score(smoothed, y))
    assert cosine.mean() > 0.9


@pytest.mark.usefixtures("_float64")
def test_iterating_the_optimal_denoiser_ends_at_modes(rng):
    mixture = create_mixture()
    smoothed = smooth(mixture, SIGMA)
    vectorize = partial(jnp.vectorize, signature="(k)->(k)")
    ends = climb(vectorize(partial(denoise, mixture, SIGMA)), rng)

    hessians = jax.jit(jax.vmap(jax.hessian(partial(compute_log_density, smoothed))))(
        ends
    )
    assert np.abs(compute_score(smoothed, ends)).max() < 1e-6
    assert np.linalg.eigvalsh(hessians).max() < 0
    modes = find_modes(smoothed)
    distances = measure_distances(ends, modes)
    assert distances.min(axis=1).max() < 1e-6
    # The first two of the four components share a mode; each mode is reached.
    assert set(distances.argmin(axis=1)) == {0, 2, 3}
    np.testing.assert_allclose(modes[0], modes[1])


@pytest.mark.slow
def test_iterating_a_trained_dae_ends_near_modes(learned, rng):
    modes = find_modes(smooth(create_mixture(), SIGMA))
    distances = measure_distances(climb(learned, rng), modes)
    assert distances.min(axis=1).max() < SIGMA / 2
