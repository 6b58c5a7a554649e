"""When an image stops, and that it stays where it stopped."""

import jax.numpy as jnp
import numpy as np

from iterinf.inference import refine, refine_step, start_stopping, stopping_step

TARGET = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)


def reconstruct(y):
    """Always the same labelling, so that each step halves the way to it."""
    return jnp.broadcast_to(TARGET, y.shape)


def run(distances, tolerance, num_iterations):
    """From labellings at these distances (L2, each pixel) to the target."""
    shift = np.asarray(distances).reshape(-1, 1, 1, 1) / np.sqrt(2)
    y = TARGET + jnp.asarray(shift, jnp.float32) * jnp.array([-1.0, 1.0]).reshape(
        1, 1, 1, 2
    )
    y = jnp.broadcast_to(y, (len(distances), 3, 4, 2))

    def step(reconstruct, state, step_size):
        return stopping_step(reconstruct, state, step_size, tolerance=tolerance)

    return refine(
        reconstruct,
        start_stopping(y, tolerance),
        step_size=0.5,
        num_iterations=num_iterations,
        observe=lambda state: jnp.linalg.norm(state.y - TARGET, axis=-1)[:, 0, 0],
        step=step,
    ).observations


def test_an_image_makes_the_step_in_which_it_stops():
    """Distances .4, .2 and .1 before the steps; below .15 first at the third."""
    found = run([0.4, 0.16, 0.1], 0.15, 5)
    expected = [
        [0.2, 0.08, 0.05],
        [0.1, 0.04, 0.05],
        [0.05, 0.04, 0.05],
        [0.05, 0.04, 0.05],
        [0.05, 0.04, 0.05],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_without_tolerance_it_is_the_plain_loop(rng):
    y = jnp.asarray(rng.dirichlet(np.ones(2), (2, 3, 4)), jnp.float32)
    state = stopping_step(reconstruct, start_stopping(y, 0.0), 0.3, tolerance=0.0)
    np.testing.assert_array_equal(state.y, refine_step(reconstruct, y, 0.3))
    assert state.moving is None


def test_the_distance_is_a_mean_over_pixels():
    """One pixel in four at distance sqrt(2), the others there: sqrt(2) / 4."""
    y = jnp.broadcast_to(TARGET, (1, 2, 2, 2)).at[0, 0, 0].set(jnp.array([0.0, 1.0]))
    for tolerance, moving in ((0.35, True), (0.36, False)):
        state = start_stopping(y, tolerance)
        state = stopping_step(reconstruct, state, 0.5, tolerance=tolerance)
        assert bool(state.moving[0]) is moving
