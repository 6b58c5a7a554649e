"""Images of any size through a finished workdir's networks."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.data import create_dataset
from iterinf.errors import UserError
from iterinf.evaluation.label_maps import refine_labels, segment
from iterinf.prediction.pipeline import read_pipeline
from iterinf.prediction.predictor import Predictor, choose_size
from iterinf.prediction.resize import (
    find_labels,
    interpolate,
    resize_channels,
    resize_image,
)
from tests import tiny


@pytest.fixture(scope="module")
def predictor(finished):
    """Of the last refiner; training images are 32x48."""
    return iterinf.load(finished)


@pytest.fixture(scope="module")
def images():
    """Test images of the training images' size."""
    options = tiny.get_config().dataset.options
    return create_dataset("streets", **options).test.stack().image


@pytest.fixture
def probabilities(rng):
    """Those of another network, of an image of the training images' size."""
    return rng.dirichlet(np.ones(11), (32, 48)).astype(np.float32)


@pytest.mark.parametrize(
    ("own", "scale", "expected"),
    [
        ((360, 480), None, (360, 480)),
        ((720, 960), None, (360, 480)),
        ((3000, 4000), None, (360, 480)),
        ((4000, 3200), None, (464, 368)),
        ((4000, 3000), 0.1, (400, 300)),
        ((500, 500), None, (416, 416)),
        ((20, 4000), None, (32, 5872)),
        ((10, 99), 1.0, (32, 99)),
    ],
)
def test_sizes(own, scale, expected):
    assert choose_size(own, (360, 480), scale) == expected


@pytest.mark.parametrize("scale", [None, 1.0])
def test_labels_are_those_of_the_table(finished, images, scale):
    pipeline = read_pipeline(finished)
    batch = iterinf.Batch(images[:1], np.zeros((1, 32, 48), np.uint8))
    expected = refine_labels(
        pipeline.segmenter,
        pipeline.refiner,
        pipeline.networks,
        batch,
        step_sizes=jnp.array([pipeline.selection.step_size]),
        num_iterations=pipeline.selection.num_iterations,
    )[:, 0, -1]
    plain = segment(pipeline.segmenter, pipeline.networks["segmenter"], batch)
    found = iterinf.load(finished, "dae_y", scale).predict(images[0])
    np.testing.assert_array_equal(found.labels, expected[0])
    np.testing.assert_array_equal(found.initial_labels, plain[0])
    assert len(np.unique(found.labels)) > 1
    assert (found.labels != found.initial_labels).any()
    np.testing.assert_array_equal(found.y.argmax(-1), expected[0])
    np.testing.assert_array_equal(found.compute_probabilities(), found.y)
    assert found.trajectory is None


def test_another_size_comes_back_at_its_own(predictor, images):
    image = resize_image(images[1], (91, 150))
    found = predictor.predict(image)
    assert found.y.shape == found.initial_y.shape == (32, 48, 11)
    np.testing.assert_array_equal(found.labels, find_labels(found.y, (91, 150)))
    expected = find_labels(found.initial_y, (91, 150))
    np.testing.assert_array_equal(found.initial_labels, expected)
    y = interpolate(found.y, (91, 150))
    np.testing.assert_array_equal(found.compute_probabilities(), y)
    small = predictor.predict(resize_image(image, (32, 48)))
    np.testing.assert_allclose(small.y, found.y, atol=1e-6)


def test_gray_and_unit_range(predictor, images):
    gray = images[0, ..., 0]
    expected = predictor.predict(np.stack([gray] * 3, axis=-1)).y
    np.testing.assert_array_equal(predictor.predict(gray).y, expected)
    np.testing.assert_array_equal(predictor.predict(gray / 255).y, expected)


def test_a_stream_gives_what_single_images_do(predictor, images):
    wide = resize_image(images[0], (20, 80))
    stream = [*images[:3], wide, images[3], wide[::-1]]
    expected = [predictor.predict(image) for image in stream]
    prepared = map(predictor.prepare, stream)
    found = list(predictor.predict_all(prepared, batch_size=2, trajectory=True))
    assert len(found) == len(stream)
    for one, other in zip(found, expected, strict=True):
        assert one.labels.shape == other.labels.shape
        np.testing.assert_allclose(one.y, other.y, atol=1e-5)
        np.testing.assert_allclose(one.initial_y, other.initial_y, atol=1e-5)


def test_a_stream_holds_no_more_than_its_batches(predictor):
    seen = []

    def draw():
        for i in range(8):
            image = np.full((32, 48, 3), i, np.uint8)
            seen.append(weakref.ref(image))
            yield predictor.prepare(image)

    most = 0
    for _ in predictor.predict_all(draw(), batch_size=2):
        gc.collect()  # some versions of JAX leave cycles behind
        most = max(most, sum(image() is not None for image in seen))
    assert len(seen) == 8
    assert most <= 5


def test_the_trajectory_begins_at_the_network_and_ends_refined(predictor, images):
    found = predictor.predict(images[0], trajectory=True)
    assert found.trajectory.dtype == np.uint8
    np.testing.assert_array_equal(found.trajectory[0], found.initial_y.argmax(-1))
    np.testing.assert_array_equal(found.trajectory[-1], found.y.argmax(-1))


def test_every_iteration_is_kept(finished, images):
    pipeline = read_pipeline(finished)
    selection = pipeline.selection._replace(step_size=0.3, num_iterations=4)
    predictor = Predictor(pipeline._replace(selection=selection))
    found = predictor.predict(images[0], trajectory=True)
    assert found.trajectory.shape == (5, 32, 48)
    shorter = pipeline._replace(selection=selection._replace(num_iterations=2))
    expected = Predictor(shorter).predict(images[0]).y.argmax(-1)
    np.testing.assert_array_equal(found.trajectory[2], expected)


def test_probabilities_of_another_network_are_what_is_refined(predictor, images):
    plain = predictor.predict(images[0])
    again = predictor.predict(images[0], probabilities=plain.initial_y)
    np.testing.assert_allclose(again.y, plain.y, atol=1e-6)
    other = np.roll(plain.initial_y, 1, axis=-1).astype(np.float16)
    found = predictor.predict(images[0], probabilities=other)
    np.testing.assert_allclose(found.initial_y, other, atol=2e-3)
    assert (found.labels != plain.labels).any()


def test_probabilities_at_the_size_of_the_image(predictor, images, probabilities):
    image = resize_image(images[0], (64, 96))
    large = resize_channels(probabilities, (64, 96))
    found = predictor.predict(image, probabilities=large)
    small = resize_channels(large, (32, 48))
    np.testing.assert_allclose(found.initial_y, small, atol=1e-6)
    same = predictor.predict(image, probabilities=small)
    np.testing.assert_allclose(found.y, same.y, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\)"),
        (np.zeros((4, 5), np.int64), "int64"),
        (np.full((4, 5), 2.0), "float64 .* to 2"),
        (np.full((4, 5), np.nan), "float64 .* nan"),
        (np.zeros((0, 5), np.uint8), "shape"),
    ],
)
def test_what_is_no_image_is_refused(predictor, image, message):
    with pytest.raises(UserError, match=f"the image .*{message}"):
        predictor.predict(image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[..., :10], "probabilities .* 10 .* 11"),
        (lambda y: y[:30], "probabilities .* 30x48, .* 64x96 or 32x48"),
        (lambda y: 2 * y, "sum to 1"),
        (lambda y: y.astype(float), "float64"),
    ],
)
def test_probabilities_that_are_none_are_refused(
    predictor, probabilities, change, message
):
    image = np.zeros((64, 96, 3), np.uint8)
    with pytest.raises(UserError, match=message):
        predictor.predict(image, probabilities=change(probabilities))


def test_six_poolings_leave_something_of_the_least_size():
    segmenter = iterinf.create_segmenter("fcn8", num_classes=3, padding="same")
    refiner = iterinf.create_refiner("dae", num_classes=3)
    image = jnp.zeros((1, 32, 96, 3))

    def run(key):
        logits, features = segmenter.apply(segmenter.init(key, image), image)
        candidate = iterinf.Candidate(jax.nn.softmax(logits), features, image)
        return refiner.apply(refiner.init(key, candidate), candidate)

    assert jax.eval_shape(run, jax.random.key(0)).shape == (1, 32, 96, 3)
