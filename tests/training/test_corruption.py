"""Noise: its statistics, its key, its constraints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.training.corruption import corrupt

Y = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(4), (1, 250, 100)), "f")


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_noise_is_normal(sigma):
    noise = np.asarray(corrupt(jax.random.key(0), Y, sigma=sigma) - Y).reshape(-1)
    assert noise.size == 100_000
    deviation = 5 / np.sqrt(noise.size)  # five standard errors
    assert abs(noise.mean()) < deviation * sigma
    assert abs(noise.std() / sigma - 1) < deviation
    assert abs(np.mean(np.abs(noise) < sigma) - 0.6827) < deviation
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < deviation


def test_the_same_key_draws_the_same_noise():
    first, again, other = (
        corrupt(jax.random.key(seed), Y, sigma=0.1) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.01


def test_no_sigma_is_no_noise():
    np.testing.assert_array_equal(corrupt(jax.random.key(0), Y, sigma=0.0), Y)


def test_constraints():
    key = jax.random.key(0)
    free = np.asarray(corrupt(key, Y, sigma=0.5))
    assert free.min() < 0
    assert free.max() > 1
    clipped = corrupt(key, Y, sigma=0.5, constraint="clip")
    np.testing.assert_allclose(clipped, np.clip(free, 0, 1), atol=1e-6)
    exponentials = np.exp(free)
    np.testing.assert_allclose(
        corrupt(key, Y, sigma=0.5, constraint="softmax"),
        exponentials / exponentials.sum(axis=-1, keepdims=True),
        atol=1e-6,
    )
