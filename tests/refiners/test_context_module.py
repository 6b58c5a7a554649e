"""The context module: identity at the start, parameters, and what a pixel sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.errors import UserError
from iterinf.refiners import create_refiner
from iterinf.types import Candidate

RELEASED = {
    "inputs": "probabilities",
    "use_image": True,
    "first_init": "glorot",
    "padding": "once",
}


def make_candidate(rng, size=(20, 23), k=3):
    logits = jnp.asarray(rng.normal(size=(2, *size, k)) * 3, jnp.float32)
    image = jnp.asarray(rng.uniform(size=(2, *size, 3)), jnp.float32)
    return Candidate(jax.nn.softmax(logits), {}, image)


def draw(rng, variables):
    """Random positive kernels: no ReLU hides a pixel."""
    return jax.tree.map(
        lambda x: (
            jnp.asarray(rng.uniform(0.1, 1, x.shape), jnp.float32) / x[..., 0].size
        ),
        variables,
    )


@pytest.mark.parametrize("padding", ["same", "once"])
@pytest.mark.parametrize("use_image", [False, True])
def test_starts_by_returning_y(rng, padding, use_image):
    candidate = make_candidate(rng)
    refiner = create_refiner(
        "context_module", num_classes=3, use_image=use_image, padding=padding
    )
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    found = jax.jit(refiner.apply)(variables, candidate)
    lowest = 3e-4  # what lifting probabilities to 1e-4 takes from the others
    np.testing.assert_allclose(found, candidate.y, atol=lowest)


@pytest.mark.parametrize(
    ("options", "parameters"), [({}, 7_832), ({"use_image": True}, 8_129)]
)
def test_number_of_parameters(rng, options, parameters):
    candidate = make_candidate(rng, k=11)
    refiner = create_refiner("context_module", num_classes=11, **options)
    variables = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_is_the_table_of_the_paper(rng):
    """Yu & Koltun 2016, table 1, basic; a convolution and a ReLU at a time."""
    candidate = make_candidate(rng, (40, 43))
    refiner = create_refiner("context_module", num_classes=3)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32) / 3,
        refiner.init(jax.random.key(0), candidate),
    )
    params = variables["params"]
    x = jnp.log(jnp.maximum(candidate.y, 1e-4) / 1e-4)
    for i, dilation in enumerate([1, 1, 2, 4, 8, 16, 1]):
        layer = params["first" if i == 0 else f"layers_{i - 1}"]
        x = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (1, 1),
            "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.maximum(x + layer["bias"][None, None, None], 0)
    x = x @ params["last"]["kernel"][0, 0] + params["last"]["bias"][None, None, None]
    found = jax.jit(refiner.apply)(variables, candidate)
    np.testing.assert_allclose(found, jax.nn.softmax(x), atol=1e-5)
    assert np.asarray(found).std(axis=(0, 1, 2)).min() > 0.005


@pytest.mark.parametrize("padding", ["same", "once"])
def test_a_pixel_sees_67_by_67(rng, padding):
    candidate = make_candidate(rng, (80, 80), k=2)
    refiner = create_refiner("context_module", num_classes=2, padding=padding)
    variables = draw(rng, refiner.init(jax.random.key(0), candidate))

    def look(y):
        y = refiner.apply(variables, candidate._replace(y=y))
        return y[0, 40, 38, 0]

    seen = jnp.any(jax.jit(jax.grad(look))(candidate.y)[0] != 0, axis=-1)
    rows, columns = np.nonzero(seen)
    assert (rows.min(), rows.max()) == (40 - 33, 40 + 33)
    assert (columns.min(), columns.max()) == (38 - 33, 38 + 33)


def test_padding_once_differs_at_the_border_only(rng):
    candidate = make_candidate(rng, (80, 80), k=2)
    same = create_refiner("context_module", num_classes=2)
    once = create_refiner("context_module", num_classes=2, padding="once")
    variables = draw(rng, same.init(jax.random.key(0), candidate))
    first, second = (
        np.asarray(jax.jit(refiner.apply)(variables, candidate))
        for refiner in (same, once)
    )
    inside = np.s_[:, 33:-33, 33:-33]
    np.testing.assert_allclose(second[inside], first[inside], atol=1e-5)
    assert np.abs(second - first).max() > 1e-3


def test_the_first_layer_reads_classes_and_image_as_one_convolution(rng):
    candidate = make_candidate(rng)
    refiner = create_refiner("context_module", num_classes=3, **RELEASED)
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    params = variables["params"]
    x = jnp.concatenate([candidate.y, candidate.image], axis=-1)
    kernels = [params["first"]["kernel"], params["first_of_image"]["kernel"]]
    bound = np.sqrt(6 / (9 * (6 + 3)))
    assert 0.9 * bound < np.abs(np.concatenate(kernels, axis=2)).max() <= bound
    x = jax.lax.conv_general_dilated(
        x,
        jnp.concatenate(kernels, axis=2),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # All other layers start as the identity.
    expected = jax.nn.softmax(jax.nn.relu(x))
    found = jax.jit(refiner.apply)(variables, candidate)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_image_counts_where_it_is_read(rng):
    candidate = make_candidate(rng)
    other = candidate._replace(image=1 - candidate.image)
    for use_image in (False, True):
        refiner = create_refiner("context_module", num_classes=3, use_image=use_image)
        variables = draw(rng, refiner.init(jax.random.key(0), candidate))
        apply = jax.jit(refiner.apply)
        difference = np.abs(apply(variables, candidate) - apply(variables, other))
        assert difference.max() > 1e-6 if use_image else difference.max() == 0


@pytest.mark.parametrize("name", ["inputs", "first_init", "padding"])
def test_an_unknown_option_is_named(name):
    with pytest.raises(UserError, match=f"{name} 'other'.*known: "):
        create_refiner("context_module", num_classes=3, **{name: "other"})
