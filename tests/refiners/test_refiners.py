"""Refiners: shapes, parameter counts, conditioning, and where h meets y."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.errors import UserError
from iterinf.refiners import REFINERS

SMALL: dict[str, dict] = {
    "context_module": {"use_image": True},
    "crf_rnn": {"exact": True},
    "dae": {"widths": (4, 5, 6), "features": ("pool2",)},
    "dense_crf": {"exact": True},
}
LEVELS = {"input": 0, "pool1": 1, "pool2": 2, "pool4": 4}
VARIANTS = [
    {},
    {"features": ()},
    {"features": ("input", "pool1", "pool2")},
    {"feature_offset": 7},
    {"feature_offset": 7, "features": ("input", "pool1")},
    {"decoder": "transposed"},
    {"skip_connections": True, "relu_decoder": False},
    {"unpool_fill": 0.5, "full_size_skip": True, "feature_offset": 7},
    {"unpool_fill": 0.5, "switches": "tied"},
    {"start_as_identity": True, "skip_connections": True, "decoder": "transposed"},
]


def create_small(name="dae", **options):
    """A refiner that initialises in no time."""
    return iterinf.create_refiner(name, num_classes=3, **SMALL[name] | options)


def make_candidate(rng, size, offset=0, batch=2):
    """Random probabilities and features, where a segmenter of that offset has them."""
    features = {}
    for name, level in LEVELS.items():
        border = 2 * offset if level else 0
        shape = [(n + border) // 2**level for n in size]
        features[name] = jnp.asarray(rng.normal(size=(batch, *shape, 3)), jnp.float32)
    logits = jnp.asarray(rng.normal(size=(batch, *size, 3)), jnp.float32)
    return iterinf.Candidate(nn.softmax(logits), features, features["input"])


def init(refiner, candidate, seed=0):
    """Variables, with random biases: at zero they would hide mistakes."""
    variables = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = math.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32)

    return jax.tree.map(draw, variables)


def assert_probabilities(y, shape):
    """Of a shape, none negative, summing to one over classes."""
    assert y.shape == shape
    assert np.min(y) >= 0
    np.testing.assert_allclose(np.sum(y, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", REFINERS)
@pytest.mark.parametrize("size", [(16, 16), (13, 22)])
def test_reconstructions_are_probabilities_of_the_shape_of_y(rng, name, size):
    refiner = create_small(name)
    candidate = make_candidate(rng, size)
    variables = init(refiner, candidate)
    assert_probabilities(jax.jit(refiner.apply)(variables, candidate), (2, *size, 3))


@pytest.mark.parametrize("name", REFINERS)
def test_one_call_is_condition_and_reconstruct(rng, name):
    refiner = create_small(name)
    candidate = make_candidate(rng, (13, 22))
    variables = init(refiner, candidate)
    condition = jax.jit(functools.partial(refiner.apply, method="condition"))
    reconstruct = jax.jit(functools.partial(refiner.apply, method="reconstruct"))
    np.testing.assert_allclose(
        reconstruct(variables, candidate.y, condition(variables, candidate)),
        jax.jit(refiner.apply)(variables, candidate),
        atol=1e-6,
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_option_keeps_shape_and_sum(rng, options):
    refiner = create_small(**options)
    size = (11, 14)
    candidate = make_candidate(rng, size, refiner.feature_offset)
    variables = init(refiner, candidate)
    assert_probabilities(jax.jit(refiner.apply)(variables, candidate), (2, *size, 3))


@pytest.mark.parametrize(
    ("channels", "parameters"), [(512, 55_019_787), (464, 54_577_419)]
)
def test_number_of_parameters_of_the_dae(channels, parameters):
    refiner = iterinf.create_refiner("dae", num_classes=11)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    h = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
    y = jax.ShapeDtypeStruct((1, 64, 64, 11), jnp.float32)
    candidate = iterinf.Candidate(y, {"pool4": h}, image)
    variables = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)]
    assert sum(sizes) == parameters


def convolve(x, layer):
    """3x3 convolution by XLA, with the layer's own bias."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=numbers
    )
    return x + layer["bias"].reshape(1, 1, 1, -1)


def upsample_nearest(x, size):
    """Repeats every value in its 2x2 window; an odd last row or column is zeros."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    missing = [(0, n - m) for n, m in zip(size, x.shape[1:3], strict=True)]
    return jnp.pad(x, ((0, 0), *missing, (0, 0)))


def reconstruct_by_concatenation(params, candidate, refiner):
    """Section 4.3 word by word: one convolution reads [pooled, h]."""
    border = refiner.feature_offset
    height, width = candidate.y.shape[1:3]
    pad = ((0, 0), (border, border), (border, border), (0, 0))
    levels = len(refiner.widths)
    x, switches, sizes = jnp.pad(candidate.y, pad), [], []
    for level in range(levels):
        layer = dict(params[f"down_{level}"])
        for name in refiner.features:
            if LEVELS[name] == level:
                h = candidate.features[name]
                h = jnp.pad(h, pad) if name == "input" else h
                x = jnp.concatenate([x, h], axis=-1)
                joined = [layer["kernel"], params[f"join_{name}"]["kernel"]]
                layer["kernel"] = jnp.concatenate(joined, axis=2)
        x = nn.relu(convolve(x, layer))
        full = x if level == 0 else full
        sizes.append(x.shape[1:3])
        x, switch = iterinf.max_pool_with_switches(x)
        switches.append(switch)
    for i in range(levels):
        switch, size = switches[levels - 1 - i], sizes[levels - 1 - i]
        fill = refiner.unpool_fill * upsample_nearest(x, size)
        x = fill + (1 - refiner.unpool_fill) * iterinf.max_unpool(x, switch, size)
        if refiner.full_size_skip and i == levels - 1:
            x = x + full
        x = convolve(x, params[f"up_{i}"])
        x = nn.relu(x) if i < levels - 1 else x
    return nn.softmax(x[:, border : border + height, border : border + width])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features": ("input", "pool1", "pool2"), "feature_offset": 5},
        {"unpool_fill": 0.7},
        {"full_size_skip": True, "features": ("input",)},
    ],
    ids=str,
)
def test_the_dae_equals_its_definition(rng, options):
    refiner = create_small(**options)
    candidate = make_candidate(rng, (11, 14), refiner.feature_offset)
    variables = init(refiner, candidate)
    expected = jax.jit(
        functools.partial(reconstruct_by_concatenation, refiner=refiner)
    )(variables["params"], candidate)
    found = jax.jit(refiner.apply)(variables, candidate)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 0.1


def test_h_changes_the_reconstruction(rng):
    refiner = create_small()
    candidate = make_candidate(rng, (16, 16))
    variables = init(refiner, candidate)
    other = candidate._replace(features=make_candidate(rng, (16, 16)).features)
    apply = jax.jit(refiner.apply)
    difference = apply(variables, candidate) - apply(variables, other)
    assert np.abs(difference).max() > 1e-3


def test_start_as_identity_returns_y(rng):
    refiner = create_small(start_as_identity=True)
    candidate = make_candidate(rng, (13, 18))
    variables = init(refiner, candidate)
    start = jax.jit(lambda key: refiner.init(key, candidate)["params"]["up_2"])
    variables["params"]["up_2"] = start(jax.random.key(0))
    found = jax.jit(refiner.apply)(variables, candidate)
    np.testing.assert_allclose(found, candidate.y, atol=1e-6)
    sure = jax.nn.one_hot(jnp.argmax(candidate.y, axis=-1), 3)
    found = jax.jit(refiner.apply)(variables, candidate._replace(y=sure))
    np.testing.assert_allclose(found, sure, atol=2.1e-4)  # clipped at 1e-4


def test_an_anchored_dae_adds_to_the_first_y(rng):
    """f(y, h) + log y_0 are its logits; without the anchor, f(y, h) + log y."""
    anchored, free = (
        create_small(start_as_identity=True, anchored=a) for a in (True, False)
    )
    first = make_candidate(rng, (13, 18))
    y = make_candidate(rng, (13, 18)).y
    variables = init(anchored, first)

    def reconstruct(refiner):
        condition = refiner.apply(variables, first, method="condition")
        return refiner.apply(variables, y, condition, method="reconstruct")

    found, other = jax.jit(lambda: (reconstruct(anchored), reconstruct(free)))()
    expected = nn.softmax(jnp.log(other) - jnp.log(y) + jnp.log(first.y))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    apply = jax.jit(anchored.apply)  # one reconstruction of the first y: no difference
    np.testing.assert_array_equal(
        apply(variables, first), jax.jit(free.apply)(variables, first)
    )


def test_skip_connections_add_the_pooled_maps(rng):
    plain, skipping = create_small(), create_small(skip_connections=True)
    candidate = make_candidate(rng, (16, 16))
    variables = init(plain, candidate)
    shapes = jax.eval_shape(skipping.init, jax.random.key(0), candidate)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    for level in (1, 2):  # a decoder of zeros passes on what the skips add, or nothing
        variables["params"][f"up_{level - 1}"] = jax.tree.map(
            jnp.zeros_like, variables["params"][f"up_{level - 1}"]
        )
    found = jax.jit(skipping.apply)(variables, candidate)
    down = convolve(candidate.y, variables["params"]["down_0"])
    pooled, switches = iterinf.max_pool_with_switches(nn.relu(down))
    unpooled = iterinf.max_unpool(pooled, switches, (16, 16))
    expected = nn.softmax(convolve(unpooled, variables["params"]["up_2"]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tied_switches_paint_every_equal_maximum(rng):
    """Of a constant y every position ties: painted by all, it stays constant inside."""
    options = {"widths": (4,), "features": (), "relu_decoder": False}
    candidate = make_candidate(rng, (10, 10))
    candidate = candidate._replace(y=jnp.full(candidate.y.shape, 1 / 3))
    variables = init(create_small(**options), candidate)
    spread = {}
    for switches in ("tied", "first"):
        refiner = create_small(**options, switches=switches)
        inside = refiner.apply(variables, candidate)[:, 3:-3, 3:-3]
        spread[switches] = float(jnp.ptp(inside, axis=(1, 2)).max())
    assert spread["tied"] < 1e-6
    assert spread["first"] > 1e-2


@pytest.mark.slow
def test_noisy_switches_are_a_pure_function_of_an_image(rng):
    refiner = create_small(switch_noise=0.5)
    candidate = make_candidate(rng, (16, 16), batch=3)
    variables = init(refiner, candidate)
    apply = jax.jit(refiner.apply)
    noisy, again = apply(variables, candidate), apply(variables, candidate)
    np.testing.assert_array_equal(noisy, again)
    one = jax.tree.map(lambda x: x[1:2], candidate)
    np.testing.assert_allclose(apply(variables, one)[0], noisy[1], atol=1e-5)
    clean = create_small().apply(variables, candidate)
    assert np.abs(noisy - clean).max() > 1e-3
    moved = candidate._replace(y=candidate.y.at[0, 0, 0, 0].add(1e-3))
    difference = np.abs(apply(variables, moved)[0] - noisy[0])[8:, 8:].max()
    assert difference > 1e-3  # other noise everywhere, not near the change alone
    np.testing.assert_array_equal(apply(variables, moved)[1:], noisy[1:])


def find_centroid(response):
    """Mean row and column of a map [h w], weighted by its values."""
    rows, columns = np.indices(response.shape)
    return np.array([(rows * response).sum(), (columns * response).sum()]) / (
        response.sum()
    )


@pytest.mark.parametrize("padding", ["same", "published"])
def test_an_impulse_in_the_image_meets_itself_in_the_dae(padding):
    """At pool4, h of an impulse in the image and y of one there share their cell."""
    size = (128, 144)
    segmenter = iterinf.create_segmenter(
        "fcn8", num_classes=3, width=1 / 64, padding=padding
    )
    offset = segmenter.feature_offset
    refiner = iterinf.create_refiner(
        "dae", num_classes=3, widths=(4, 4, 4, 4, 4, 4), feature_offset=offset
    )

    def fill(shapes):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(
                leaf.shape,
                0.0 if path[-1].key == "bias" else 1 / math.prod(leaf.shape[:-1]),
            ),
            shapes,
        )

    @jax.jit
    def respond(image, y):
        """Returns h, and both halves of the DAE's convolution that reads pool4."""
        shapes = jax.eval_shape(segmenter.init, jax.random.key(0), image)
        _, features = segmenter.apply(fill(shapes), image)
        candidate = iterinf.Candidate(y, features, image)
        shapes = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
        _, state = refiner.apply(fill(shapes), candidate, capture_intermediates=True)
        seen = state["intermediates"]
        return [features["pool4"]] + [
            seen[name]["__call__"][0] for name in ("join_pool4", "down_4")
        ]

    for row, column in ((60, 70), (71, 77), (52, 64), (67, 81)):
        image = jnp.zeros((1, *size, 3)).at[0, row, column].set(1.0)
        responses = respond(image, image)
        assert len({response.shape[:3] for response in responses}) == 1
        middle = (np.array([row, column]) + offset + 0.5) / 16 - 0.5
        for response in responses:
            centroid = find_centroid(np.asarray(response[0, :, :, 0]))
            assert np.abs(centroid - middle).max() < 0.5


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'dea'.*known: .*dae"):
        iterinf.create_refiner("dea", num_classes=11)


def test_an_unknown_option_is_named():
    with pytest.raises(UserError, match=r"'dae'.*sigma"):
        iterinf.create_refiner("dae", num_classes=11, sigma=0.1)


@pytest.mark.parametrize(
    ("option", "known"),
    [("decoder", "unpool, transposed"), ("switches", "first, tied")],
)
def test_an_unknown_choice_is_answered_with_the_known_ones(option, known):
    with pytest.raises(UserError, match=f"{option} 'other'; known: {known}"):
        create_small(**{option: "other"})


@pytest.mark.parametrize("feature", ["pool9", "pool3", "pool4"])
def test_a_feature_below_the_last_level_is_answered_with_the_known_ones(feature):
    with pytest.raises(UserError, match=rf"'{feature}'.*known: input, pool1, pool2$"):
        create_small(features=(feature,))


def test_a_feature_that_the_segmenter_lacks_is_answered_with_those_it_gives(rng):
    candidate = make_candidate(rng, (16, 16))
    del candidate.features["pool2"]
    with pytest.raises(UserError, match=r"'pool2'.*gives: input, pool1, pool4"):
        jax.eval_shape(create_small().init, jax.random.key(0), candidate)


@pytest.mark.parametrize(
    "identity", [{}, {"start_as_identity": True, "anchored": True}]
)
def test_a_dae_without_y_is_a_function_of_h(rng, identity):
    """Whatever y is, r is that of the uniform distribution."""
    options = {"widths": (4, 6), "features": ("pool1",)} | identity
    refiner = iterinf.create_refiner("dae", num_classes=3, reads_y=False, **options)
    reading = iterinf.create_refiner("dae", num_classes=3, **options)
    y = jnp.asarray(rng.dirichlet(np.ones(3), (2, 12, 16)), jnp.float32)
    features = {"pool1": jnp.asarray(rng.normal(size=(2, 6, 8, 5)), jnp.float32)}
    candidate = iterinf.Candidate(y, features, jnp.zeros((2, 12, 16, 3)))
    variables = init(refiner, candidate)
    found = refiner.apply(variables, candidate)
    uniform = candidate._replace(y=jnp.full_like(y, 1 / 3))
    np.testing.assert_allclose(found, reading.apply(variables, uniform), atol=1e-6)
    assert np.abs(found - reading.apply(variables, candidate)).max() > 1e-3
