"""Label maps against the loop of Eq. 6 in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.prediction import predict_labels
from tests.test_selection import Refiner, Segmenter, make_problem, softmax


def predict_by_loop(variables, images, step_size, num_iterations):
    """Segmenter's and refined label maps, in float64."""
    segmenter, refiner = (v["params"] for v in variables)
    images = images / 255
    y = softmax(4 * images @ segmenter["Dense_0"]["kernel"])
    initial, condition = y, 3 * images @ refiner["other"]["kernel"]
    for _ in range(num_iterations):
        mixed = np.roll(y, 1, axis=2) + y
        reconstruction = softmax(4 * mixed @ refiner["own"]["kernel"] + condition)
        y = y + step_size * (reconstruction - y)
    return initial.argmax(axis=-1), y.argmax(axis=-1)


@pytest.mark.parametrize(("step_size", "num_iterations"), [(0.3, 5), (1.0, 1)])
def test_equals_a_loop(step_size, num_iterations):
    variables, images, _ = make_problem()
    expected = predict_by_loop(variables, images, step_size, num_iterations)
    found = predict_labels(
        Segmenter(),
        Refiner(),
        *variables,
        jnp.asarray(images),
        step_size=jnp.asarray(step_size),
        num_iterations=num_iterations,
    )
    assert (expected[0] != expected[1]).any()
    for labels, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels, other)


def test_no_iteration_returns_the_segmenter():
    variables, images, _ = make_problem()
    initial, refined = predict_labels(
        Segmenter(),
        Refiner(),
        *variables,
        jnp.asarray(images),
        step_size=jnp.asarray(0.5),
        num_iterations=0,
    )
    np.testing.assert_array_equal(refined, initial)
