"""Label maps and their counts against the loop of Eq. 6 in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.evaluation.label_maps import count_predictions, refine_labels, segment
from iterinf.evaluation.tally import Spec
from tests.fixtures.linear import (
    Refiner,
    Segmenter,
    count_image,
    make_problem,
    softmax,
)


def predict_by_loop(networks, images, step_size, num_iterations):
    """Segmenter's and refined probabilities, in float64."""
    segmenter, refiner = (networks[n]["params"] for n in ("segmenter", "refiner"))
    images = images / 255
    y = softmax(4 * images @ segmenter["Dense_0"]["kernel"])
    initial, condition = y, 3 * images @ refiner["other"]["kernel"]
    for _ in range(num_iterations):
        mixed = np.roll(y, 1, axis=2) + y
        reconstruction = softmax(4 * mixed @ refiner["own"]["kernel"] + condition)
        y = y + step_size * (reconstruction - y)
    return initial, y


def refine(networks, batch, step_sizes, num_iterations, **options):
    """`refine_labels` of the test networks."""
    return refine_labels(
        Segmenter(),
        Refiner(),
        networks,
        batch,
        step_sizes=jnp.asarray(step_sizes),
        num_iterations=num_iterations,
        **options,
    )


def test_equals_a_loop():
    networks, batch = make_problem()
    step_sizes, num_iterations = (0.3, 1.0), 5
    found = refine(networks, batch, step_sizes, num_iterations)
    assert found.shape == (5, 2, 6, 4, 5)
    assert (found[:, :, 0] != found[:, :, -1]).any()
    assert (found[:, 0] != found[:, 1]).any()
    for s, step_size in enumerate(step_sizes):
        for t in range(num_iterations + 1):
            _, refined = predict_by_loop(networks, batch.image, step_size, t)
            np.testing.assert_array_equal(found[:, s, t], refined.argmax(axis=-1))


def test_no_iteration_returns_the_segmenter():
    networks, batch = make_problem()
    initial, _ = predict_by_loop(networks, batch.image, 0.0, 0)
    found = segment(Segmenter(), networks["segmenter"], batch)
    np.testing.assert_array_equal(found, initial.argmax(axis=-1))
    (maps,) = np.moveaxis(refine(networks, batch, (0.5,), 0)[:, 0], 1, 0)
    np.testing.assert_array_equal(maps, found)


def test_all_that_is_near_stops_after_one_step():
    networks, batch = make_problem()
    moving = refine(networks, batch, (1.0,), 4)
    stopped = refine(networks, batch, (1.0,), 4, stop=9.0)
    assert (moving[:, :, 1] != moving[:, :, 4]).any()
    for t in range(1, 5):
        np.testing.assert_array_equal(stopped[:, :, t], moving[:, :, 1])


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_segmenter_is_counted_image_by_image(batch_size):
    networks, split = make_problem()
    found = count_predictions(
        Segmenter(),
        networks["segmenter"],
        split,
        spec=Spec(3, 0.1, details=True),
        batch_size=batch_size,
    )
    y, _ = predict_by_loop(networks, split.image, 0.0, 0)
    expected = [count_image(*pair) for pair in zip(split.label, y, strict=True)]
    np.testing.assert_array_equal(found.confusion, expected)
    likelihood = np.take_along_axis(y, split.label[..., None].clip(0, 2), axis=-1)
    surprise = np.where(split.label < 3, -np.log(likelihood[..., 0]), 0)
    np.testing.assert_allclose(
        found.details.negative_log_likelihood, surprise.sum(axis=(1, 2)), rtol=1e-4
    )
