"""Estimated statistics are those of the population of all batches."""

import jax
import jax.numpy as jnp
import numpy as np

from iterinf.training.batch_norm import estimate_statistics
from iterinf.types import Batch
from tests.fixtures.narrow_fc_densenet import create_narrow, load_variables


def make_batches(rng, count):
    """Some batches are bright, others dark, so that their means vary."""
    images = rng.uniform(size=(count, 2, 16, 16, 3)).astype(np.float32)
    images *= np.linspace(0.1, 1, count, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    labels = jnp.zeros((2, 16, 16), jnp.int32)
    return [Batch(jnp.asarray(image), labels) for image in images]


def test_of_the_first_layer_they_are_those_of_all_pixels(rng):
    """Mean and variance over batches, images and positions alike."""
    segmenter = create_narrow(statistics="running")
    variables, batches = load_variables(), make_batches(rng, 4)
    found = estimate_statistics(segmenter, variables, iter(batches), 3)
    mean, var = (found["first"][name] for name in ("mean", "var"))
    kernel, bias = (variables["params"]["first"][name] for name in ("kernel", "bias"))
    maps = [
        jax.lax.conv_general_dilated(
            batch.image,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        + bias[None, None, None]
        for batch in batches[:3]
    ]
    pixels = np.stack(maps).astype(np.float64)
    expected = pixels.mean(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(np.ravel(mean), expected, rtol=1e-4, atol=1e-5)
    expected = pixels.var(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(np.ravel(var), expected, rtol=1e-4)


def test_one_image_is_then_scored_as_in_a_batch(rng):
    segmenter = create_narrow(statistics="running")
    batches = make_batches(rng, 3)
    statistics = estimate_statistics(segmenter, load_variables(), iter(batches), 3)
    variables = load_variables() | {"statistics": statistics}
    apply = jax.jit(segmenter.apply)
    together, _ = apply(variables, batches[0].image)
    alone, _ = apply(variables, batches[0].image[1:])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)


def test_those_of_one_batch_score_it_as_its_own(rng):
    """However strong the dropout in training: it is off here as it is there."""
    (batch,) = make_batches(rng, 1)
    segmenter = create_narrow(statistics="running", dropout=0.5)
    statistics = estimate_statistics(segmenter, load_variables(), iter([batch]), 1)
    variables = load_variables() | {"statistics": statistics}
    found, _ = jax.jit(segmenter.apply)(variables, batch.image)
    own = create_narrow(statistics="batch", dropout=0.5)
    expected, _ = jax.jit(own.apply)(load_variables(), batch.image)
    np.testing.assert_allclose(found, expected, atol=1e-4)
