"""The dense CRF against mean field over all pairs of pixels, and against pydensecrf."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.errors import UserError
from iterinf.ops.permutohedral import (
    build_lattice,
    filter_exactly,
    filter_on_lattice,
)
from iterinf.refiners import functional as crf
from iterinf.refiners.dense_crf import make_features
from tests.fixtures.scenes import infer_in_numpy, make_scene

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_iterations", [1, 5])
def test_exact_inference_is_mean_field_over_all_pairs(rng, num_iterations):
    y, image = make_scene(rng)
    found = iterinf.dense_crf(y, image, num_iterations, exact=True)
    expected = infer_in_numpy(y, image, (3 * np.eye(3), 10 * np.eye(3)), num_iterations)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.mean(found.argmax(-1) != y.argmax(-1)) > 0.02


def test_zeros_are_clipped_as_pydensecrf_does(rng):
    y, image = make_scene(rng)
    y = np.eye(3, dtype=np.float32)[y.argmax(axis=-1)]
    options = {"spatial_weight": 3.0, "bilateral_weight": 3.0}
    found = iterinf.dense_crf(y, image, 1, exact=True, **options)
    expected = infer_in_numpy(y, image, (3 * np.eye(3), 3 * np.eye(3)), 1)
    np.testing.assert_allclose(np.log(found), np.log(expected), atol=1e-3)


def test_full_compatibility_is_mean_field_over_all_pairs(rng):
    y, image = make_scene(rng)
    weights = rng.normal(size=(2, 3, 3)) * 2
    found = iterinf.dense_crf(
        y,
        image,
        3,
        spatial_weight=weights[0],
        bilateral_weight=weights[1],
        spatial_width=2.0,
        bilateral_width=7.0,
        color_width=30.0,
        exact=True,
    )
    expected = infer_in_numpy(y, image, weights, 3, (2, 7, 30))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_lattice_is_near_exact_inference(rng):
    """On 30 x 40 pixels: 98% of the labels, and probabilities within .01 on average."""
    y, image = make_scene(rng, (30, 40))
    found = np.asarray(iterinf.dense_crf(y, image))
    exact = np.asarray(iterinf.dense_crf(y, image, exact=True))
    assert np.mean(found.argmax(-1) == exact.argmax(-1)) >= 0.98
    assert np.abs(found - exact).mean() < 0.01
    assert np.abs(exact - y).mean() > 0.1


@pytest.mark.parametrize(
    ("scene", "bilateral_width"),
    [("k2", 3), ("k2", 80), ("k21", 3), ("k21", 80), ("labels", 3)],
)
def test_agrees_with_pydensecrf(scene, bilateral_width):
    with np.load(Path(__file__).parents[1] / "fixtures" / "pydensecrf.npz") as arrays:
        case = f"{scene}_width{bilateral_width}"
        y, image, expected = (
            arrays[f"{case}_{name}"] for name in ("y", "image", "inferred")
        )
    y = y.astype(np.float32)
    found = np.asarray(
        iterinf.dense_crf(y, image, bilateral_width=float(bilateral_width))
    )
    assert np.mean(found.argmax(-1) == expected.argmax(-1)) >= 0.999
    assert np.abs(found - expected).mean() < 1e-3
    assert np.mean(expected.argmax(-1) != y.argmax(-1)) > 0.02


def test_weights_as_number_diagonal_and_matrix_agree(rng):
    y, image = make_scene(rng)
    number = iterinf.dense_crf(y, image, 3, exact=True)
    for one in (np.ones(3), np.eye(3)):
        weights = {"spatial_weight": 3 * one, "bilateral_weight": 10 * one}
        found = iterinf.dense_crf(y, image, 3, exact=True, **weights)
        np.testing.assert_allclose(found, number, atol=1e-5)


def test_without_kernels_y_stays(rng):
    y, image = make_scene(rng)
    weights = {"spatial_weight": 0.0, "bilateral_weight": 0.0}
    found = iterinf.dense_crf(y, image, 3, exact=True, **weights)
    np.testing.assert_allclose(found, y, atol=1e-4)
    np.testing.assert_allclose(iterinf.dense_crf(y, image, 0), y, rtol=1e-5)


def test_a_batch_is_its_members(rng):
    scenes = [make_scene(rng) for _ in range(4)]
    y, image = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    found = iterinf.dense_crf(y, image)
    for i in range(4):
        alone = iterinf.dense_crf(y[i], image[i])
        np.testing.assert_allclose(found[i], alone, atol=1e-4)


def test_images_of_bytes_and_of_floats_agree(rng):
    y, image = make_scene(rng)
    floats = (image / 255).astype(np.float32)
    found, expected = (iterinf.dense_crf(y, x, exact=True) for x in (floats, image))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_logits_give_what_their_softmax_gives(rng):
    y, image = make_scene(rng)
    found = iterinf.dense_crf(np.log(y) + 7, image, from_logits=True, exact=True)
    np.testing.assert_allclose(
        found, iterinf.dense_crf(y, image, exact=True), atol=1e-4
    )


@pytest.mark.parametrize(
    ("size", "k", "exact"),
    [((1, 1), 2, False), ((1, 17), 2, True), ((17, 1), 21, False)],
)
def test_lines_of_pixels_and_any_number_of_classes(rng, size, k, exact):
    y, image = make_scene(rng, size, k)
    found = iterinf.dense_crf(y, image, exact=exact)
    assert found.shape == y.shape
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    expected = infer_in_numpy(y, image, (3 * np.eye(k), 10 * np.eye(k)), 10)
    assert np.abs(found - expected).mean() < 0.02
    assert np.abs(expected - y).mean() > 0.02


def test_the_refiner_is_the_function(rng):
    y, image = make_scene(rng)
    candidate = iterinf.Candidate(
        jnp.asarray(y[None]), {}, jnp.asarray(image[None] / np.float32(255))
    )
    refiner = iterinf.create_refiner("dense_crf", num_classes=3, exact=True)

    @jax.jit
    def infer(candidate):
        variables = refiner.init(jax.random.key(0), candidate)
        condition = refiner.apply(variables, candidate, method="condition")
        return iterinf.refine(
            lambda y: refiner.apply(variables, y, condition, method="reconstruct"),
            candidate.y,
            step_size=1.0,
            num_iterations=10,
        ).y

    np.testing.assert_allclose(
        infer(candidate)[0], iterinf.dense_crf(y, image, exact=True), atol=1e-5
    )


def test_gradients_inside_jit_are_those_of_finite_differences(rng):
    y, image = make_scene(rng)
    target = jnp.asarray(rng.normal(size=y.shape), jnp.float32)

    @jax.jit
    def compute(weight, logits):
        q = iterinf.dense_crf(
            logits, image, 3, from_logits=True, bilateral_weight=weight, exact=True
        )
        return jnp.vdot(q, target)

    logits = jnp.log(y)
    gradients = jax.grad(compute, argnums=(0, 1))(2.0, logits)
    eps = 0.05
    numeric = (compute(2 + eps, logits) - compute(2 - eps, logits)) / (2 * eps)
    np.testing.assert_allclose(gradients[0], numeric, rtol=1e-2, atol=1e-3)
    way = jnp.asarray(rng.normal(size=y.shape), jnp.float32) / 10
    numeric = (compute(2.0, logits + way) - compute(2.0, logits - way)) / 2
    np.testing.assert_allclose(
        jnp.vdot(gradients[1], way), numeric, rtol=1e-2, atol=1e-3
    )


def test_works_where_weights_alone_or_nothing_is_traced(rng):
    y, image = (jnp.asarray(array) for array in make_scene(rng))

    @jax.jit
    def compute(weight):
        weighted = iterinf.dense_crf(y, image, 2, bilateral_weight=weight, exact=True)
        return weighted, iterinf.dense_crf(y, image, 2, exact=True)

    expected = iterinf.dense_crf(y, image, 2, exact=True)
    for found in compute(10.0):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rounding_is_no_error(rng):
    y, image = make_scene(rng)
    image = image / np.float32(255)
    expected = iterinf.dense_crf(y, image, 2)
    found = iterinf.dense_crf(y - 1e-7, image * np.float32(1.000001), 2)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, x: (y[..., :1], x, {}), "1 class"),
        (lambda y, x: (2 * y, x, {}), r"sums .* \[2, 2\]"),
        (lambda y, x: (np.log(y), x, {}), "from_logits=True"),
        (lambda y, x: (np.nan * y, x, {}), "probabilities are not finite"),
        (lambda y, x: (np.inf * y, x, {"from_logits": True}), "logits are not finite"),
        (lambda y, x: (y, x[:5], {}), r"\(12, 15, 3\) .*\(5, 15, 3\)"),
        (lambda y, x: (y, x[..., 0], {}), r"\(12, 15, 3\) .*\(12, 15\)"),
        (lambda y, x: (y[:0], x[:0], {}), r"\(0, 15, 3\)"),
        (lambda y, x: (y, x.astype(np.float32), {}), "image has values"),
        (lambda y, x: (y, x.astype(np.int32), {}), "image .* int32"),
        (lambda y, x: (y, x, {"spatial_width": 0.0}), "spatial_width is 0.0"),
        (lambda y, x: (y, x, {"spatial_width": 1e-9}), "spatial_width 1e-"),
        (lambda y, x: (y, x, {"color_width": 0.05}), "color_width is 0.05"),
        (
            lambda y, x: (y, x, {"bilateral_width": np.ones(2)}),
            r"bilateral_width is \[1.0, 1.0\]",
        ),
        (lambda y, x: (y, x, {"num_iterations": -1}), "num_iterations is -1"),
        (lambda y, x: (y, x, {"bilateral_weight": np.nan}), "bilateral_weight is nan"),
        (lambda y, x: (y, x, {"spatial_weight": np.ones(4)}), r"spatial_weight .*\(4,"),
    ],
)
def test_invalid_arguments_are_named(rng, change, message):
    y, image, options = change(*make_scene(rng))
    with pytest.raises(UserError, match=message):
        iterinf.dense_crf(y, image, **options)


@pytest.mark.parametrize("exact", [False, True])
def test_a_result_is_returned_without_waiting_for_it(rng, monkeypatch, exact):
    """Only inputs are read, so that calls in a loop overlap on a device."""
    y, image = make_scene(rng)

    unseen = jnp.full((1, *y.shape), jnp.nan)  # looking at it raises an error
    monkeypatch.setattr(crf, "_infer", lambda *args: unseen)
    assert jnp.isnan(iterinf.dense_crf(y, image, exact=exact)).all()
    assert jnp.isnan(iterinf.dense_crf(jnp.asarray(y), image, exact=exact)).all()


@pytest.mark.parametrize("width", [1e-9, 1e-5, 3e-4, 0.003, 0.02])
def test_kernels_too_narrow_are_refused_or_finite(rng, width):
    y, image = make_scene(rng)
    for name in ("spatial_width", "bilateral_width"):
        with contextlib.suppress(UserError):
            found = iterinf.dense_crf(y, image, 1, color_width=1.0, **{name: width})
            assert np.isfinite(found).all()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "lattice"])
def test_permuted_classes_permute_the_result(rng, exact):
    """q(P y; P W P^T) = P q(y; W), P a permutation of the classes: none is special."""
    y, image = make_scene(rng)
    weights = rng.normal(size=(2, 3, 3)) * 2 + 3 * np.eye(3)
    order = [2, 0, 1]

    def infer(y, weights):
        spatial, bilateral = weights
        return iterinf.dense_crf(
            y, image, 5, spatial_weight=spatial, bilateral_weight=bilateral, exact=exact
        )

    expected = np.asarray(infer(y, weights))
    permuted = infer(y[..., order], weights[:, order][:, :, order])
    np.testing.assert_allclose(permuted, expected[..., order], atol=1e-5)
    assert np.abs(expected[..., order] - expected).max() > 0.5


MIRRORS = {
    "transpose": lambda x: x.swapaxes(0, 1),
    "left_right": lambda x: x[:, ::-1],
    "up_down": lambda x: x[::-1],
}


def infer_mirrored(y, image, mirror, **options):
    """The result for a mirrored image and y, mirrored back."""
    y, image = (np.ascontiguousarray(mirror(x)) for x in (y, image))
    return mirror(np.asarray(iterinf.dense_crf(y, image, **options)))


@pytest.mark.parametrize("mirror", MIRRORS)
def test_exact_inference_mirrors_with_the_image(rng, mirror):
    """q(M y, M x) = M q(y, x): kernels read the distances of pixels alone."""
    y, image = make_scene(rng)
    expected = np.asarray(iterinf.dense_crf(y, image, exact=True))
    found = infer_mirrored(y, image, MIRRORS[mirror], exact=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - MIRRORS["left_right"](expected)).max() > 0.5


@pytest.mark.parametrize("mirror", MIRRORS)
def test_lattice_mirrors_with_the_image_approximately(rng, mirror):
    """q(M y, M x) ~ M q(y, x), a property of the permutohedral lattice, not a defect.

    Its simplices lie otherwise about a mirrored point, and it blurs along one
    direction after another. On five scenes of 60x80 pixels, single probabilities
    differ by up to .37, their mean by up to .001, and 99.8% of the labels agree.
    """
    y, image = make_scene(rng, (60, 80))
    expected = np.asarray(iterinf.dense_crf(y, image))
    difference = infer_mirrored(y, image, MIRRORS[mirror]) - expected
    labels = (expected + difference).argmax(axis=-1)
    assert np.mean(labels == expected.argmax(axis=-1)) >= 0.995
    assert np.abs(difference).mean() < 0.003
    assert 1e-3 < np.abs(difference).max() < 0.6  # exact inference: below 1e-5


@pytest.mark.parametrize("widths", [(3.0,), (3.0, 13.0), (80.0, 13.0)], ids=str)
def test_the_matrix_of_the_lattice_is_not_symmetric(rng, widths):
    """K, with K v the filtered v, where the Gaussian has K = K^T.

    K = S^T B_d .. B_0 S: the blurs B of the directions do not commute where a vertex
    has no neighbor. max |K - K^T| is 17% to 28% of the largest entry on five images,
    20% for the kernel of positions alone.
    """
    _, image = make_scene(rng, (20, 30))
    places, colors = make_features(jnp.asarray(image[None] / np.float32(255)))
    parts = [places, colors[0]][: len(widths)]
    scaled = [part / width for part, width in zip(parts, widths, strict=True)]
    features = jnp.concatenate(scaled, axis=1)

    @jax.jit
    def compute_matrices(features):
        ones = jnp.eye(len(features))
        lattice = build_lattice(features)
        return filter_on_lattice(lattice, ones), filter_exactly(features, ones)

    found, exact = map(np.asarray, compute_matrices(features))
    asymmetry = np.abs(found - found.T).max() / found.max()
    assert 0.05 < asymmetry < 0.4
    np.testing.assert_allclose(exact, exact.T, atol=1e-6)


@pytest.mark.parametrize("logit", [np.nan, np.inf, 1e39])
def test_logits_beyond_float32_are_refused(rng, logit):
    y, image = make_scene(rng)
    logits = np.log(y).astype(np.float64)
    logits[3, 4, 1] = logit
    with pytest.raises(UserError, match="logits are not finite"):
        iterinf.dense_crf(logits, image, from_logits=True)


def test_a_list_of_traced_weights_is_read(rng):
    y, image = make_scene(rng)

    def compute(a):
        weights = {"spatial_weight": [a, a, 2 * a]}
        return iterinf.dense_crf(y, image, 2, exact=True, **weights)[..., 0].sum()

    gradient = jax.grad(compute)(1.0)
    expected = (compute(1.01) - compute(0.99)) / 0.02
    np.testing.assert_allclose(gradient, expected, rtol=0.05)
