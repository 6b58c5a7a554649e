"""Pretrained weights: each array in its place, and what is said of a wrong file."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import iterinf
from configs import base
from iterinf.errors import UserError
from iterinf.prediction.pipeline import build_segmenter
from iterinf.segmenters.pretrained import (
    VGG16_INPUT,
    describe_replaced,
    find_input,
    match_input,
    read_weights,
    replace_parameters,
)
from iterinf.workdir import write_input
from tests.fixtures.fc_densenet import BY_PYTORCH, create_narrow, load_variables
from tests.fixtures.vgg16 import make_vgg16


def create_fcn8():
    return iterinf.create_segmenter("fcn8", num_classes=3, width=1 / 64, padding="same")


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors = pytest.importorskip(
            "safetensors.numpy", reason="safetensors is not installed"
        )
        safetensors.save_file(arrays, path)
    return str(path)


def init(segmenter):
    """Parameters in the network's shapes; no matter which."""
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(segmenter.init, jax.random.key(0), images)["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), x.dtype), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_vgg16_becomes_an_fcn8(rng, tmp_path, suffix):
    arrays, segmenter = make_vgg16(rng), create_fcn8()
    path = write(tmp_path / f"vgg16{suffix}", arrays)
    before = init(segmenter)
    after = replace_parameters(before, read_weights(path, segmenter), path)
    flat, old = flatten_dict(after, sep="/"), flatten_dict(before, sep="/")
    kept = {name for name in flat if name.startswith(("score", "upsample"))}
    assert {name for name in flat if np.array_equal(flat[name], old[name])} == kept
    assert (
        flat["conv3_2/kernel"][2, 0, 3, 1] == arrays["features.12.weight"][1, 3, 2, 0]
    )
    np.testing.assert_array_equal(flat["conv5_3/bias"], arrays["features.28.bias"])


def test_convolutions_alone_leave_the_rest_from_scratch(rng, tmp_path):
    arrays, segmenter = make_vgg16(rng), create_fcn8()
    kept = {name: a for name, a in arrays.items() if name.startswith("features")}
    path = write(tmp_path / "vgg16.npz", kept)
    before, found = init(segmenter), read_weights(path, segmenter)
    assert len(found) == 2 * 13
    after = replace_parameters(before, found, path)
    np.testing.assert_array_equal(after["fc6"]["kernel"], before["fc6"]["kernel"])
    assert (after["conv5_3"]["kernel"] != before["conv5_3"]["kernel"]).any()
    sentence = describe_replaced(before, found, path)
    assert sentence.startswith(f"{path}: 13 of 21 layers start from it; from scratch: ")
    fresh = sentence.rpartition(": ")[2].split(", ")
    assert {"fc6", "fc7"} < set(fresh)
    assert len(fresh) == 8


def test_fc6_of_vgg16_sees_the_grid_as_the_matrix_did(rng, tmp_path):
    arrays = make_vgg16(rng)
    found = read_weights(write(tmp_path / "vgg16.npz", arrays), create_fcn8())
    grid = rng.normal(size=(7, 7, 8)).astype(np.float32)
    by_matrix = arrays["classifier.0.weight"] @ grid.transpose(2, 0, 1).ravel()
    by_kernel = np.einsum("ijc,ijco->o", grid, found["fc6/kernel"])
    np.testing.assert_allclose(by_kernel, by_matrix, rtol=1e-4, atol=1e-4)
    expected = arrays["classifier.3.weight"].T[None, None]
    np.testing.assert_array_equal(found["fc7/kernel"], expected)


def test_images_are_normalised_as_for_vgg16():
    numbers = find_input(pathlib.Path("vgg16.pth"))
    segmenter = match_input(create_fcn8(), numbers, "vgg16.pth")
    assert segmenter.input_mean == (0.485, 0.456, 0.406)
    assert segmenter.input_std == (0.229, 0.224, 0.225)
    assert match_input(create_narrow(), numbers, "x.npz") == create_narrow()


def test_a_configured_normalisation_is_that_of_the_weights_or_an_error():
    own = create_fcn8().clone(input_mean=(0.485, 0.456, 0.406))
    segmenter = match_input(own, VGG16_INPUT, "vgg16.pth")
    assert segmenter.input_mean == (0.485, 0.456, 0.406)
    assert segmenter.input_std == (0.229, 0.224, 0.225)
    other = create_fcn8().clone(input_std=(0.3, 0.3, 0.3))
    with pytest.raises(UserError, match=r"input_std is \(0.3, 0.3, 0.3\), .*0.229"):
        match_input(other, VGG16_INPUT, "vgg16.pth")


@pytest.mark.parametrize("kept", [{"input_mean": (0.1,) * 3}, None])
def test_once_trained_images_are_normalised_as_in_training(tmp_path, kept):
    """The file of weights is not needed any more; earlier versions knew only VGG16."""
    config = base.get_config()
    config.segmenter.init_from = "missing.safetensors"
    (tmp_path / "segmenter" / "checkpoints" / "4").mkdir(parents=True)
    if kept:
        write_input(tmp_path, kept)
    segmenter = build_segmenter(config, 11, tmp_path)
    expected = (kept or VGG16_INPUT)["input_mean"]
    assert segmenter.input_mean == expected


def list_in_forward_order(params):
    """The arrays as Lasagne lists them, from those that PyTorch ran with."""
    flat = flatten_dict(params, sep="/")

    def list_layers(name, count):
        for i in range(1, count + 1):
            yield from list_layer(f"{name}_layer{i}")

    def list_layer(name):
        yield flat[f"{name}/bias"]
        yield flat[f"{name}/scale"]
        yield np.zeros_like(flat[f"{name}/bias"])
        yield np.ones_like(flat[f"{name}/bias"])
        yield from list_convolution(f"{name}/conv")

    def list_convolution(name, axes=(3, 2, 0, 1)):
        yield flat[f"{name}/kernel"].transpose(axes)
        yield flat[f"{name}/bias"]

    yield from list_convolution("first")
    yield from list_layers("down1", 2)
    yield from list_layer("transition1")
    yield from list_layers("down2", 3)
    yield from list_layer("transition2")
    yield from list_layers("bottleneck", 2)
    yield from list_convolution("upsampling2", (2, 3, 0, 1))
    yield from list_layers("up2", 3)
    yield from list_convolution("upsampling1", (2, 3, 0, 1))
    yield from list_layers("up1", 2)
    yield from list_convolution("score")


def write_fc_densenet(path):
    arrays = list(list_in_forward_order(load_variables()["params"]))
    np.savez(path, *arrays)
    return str(path), len(arrays)


@pytest.mark.slow
def test_an_fc_densenet_of_lasagne_scores_as_pytorch(tmp_path):
    path, count = write_fc_densenet(tmp_path / "weights.npz")
    assert count == 2 + 6 * (2 + 1 + 3 + 1 + 2) + 2 + 6 * 3 + 2 + 6 * 2 + 2
    segmenter = create_narrow()
    params = replace_parameters(init(segmenter), read_weights(path, segmenter), path)
    logits, _ = jax.jit(segmenter.apply)({"params": params}, BY_PYTORCH["images"])
    np.testing.assert_allclose(logits, BY_PYTORCH["logits_image"], rtol=1e-4, atol=1e-4)


def test_the_103_has_590_arrays(tmp_path):
    np.savez(tmp_path / "weights.npz", np.zeros(3))
    segmenter = iterinf.create_segmenter("fc_densenet103", num_classes=11)
    with pytest.raises(UserError, match="1 arrays, expected 590"):
        read_weights(str(tmp_path / "weights.npz"), segmenter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.10.weight": None}, "has no array 'features.10.weight'"),
        (
            {"features.2.bias": np.zeros((1, 1))},
            r"conv1_2/bias is \[1, 1\] there, expected \[1\]",
        ),
        (
            {"features.7.weight": np.zeros((5, 2, 3, 3))},
            r"conv2_2/kernel is \[3, 3, 2, 5\] there, expected \[3, 3, 2, 2\]",
        ),
        (
            {"classifier.0.weight": np.zeros((64, 90))},
            "is damaged or does not hold the weights",
        ),
    ],
)
def test_a_wrong_array_is_named(rng, tmp_path, change, message):
    arrays = make_vgg16(rng) | change
    kept = {name: array for name, array in arrays.items() if array is not None}
    path, segmenter = write(tmp_path / "vgg16.npz", kept), create_fcn8()
    with pytest.raises(UserError, match=f"{path}.*{message}"):
        replace_parameters(init(segmenter), read_weights(path, segmenter), path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", {"segmenter/params/a/kernel": np.ones(2)})
    segmenter = create_fcn8()
    with pytest.raises(UserError, match="another network: this one has no a/kernel"):
        replace_parameters(init(segmenter), read_weights(path, segmenter), path)
    with pytest.raises(UserError, match="x.safetensors lacks the metadata"):
        find_input(pathlib.Path(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.npz", "cannot read .*no.npz: No such file"),
        ("x.ckpt", "cannot tell what .*x.ckpt is, expected .pth"),
        ("text.npz", "text.npz is damaged or does not hold the weights"),
        ("objects.npz", "objects.npz is damaged or does not hold the weights"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: pathlib.Path, name, message):
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=message):
        read_weights(str(tmp_path / name), create_fcn8())


def test_a_torch_file_without_torch_is_answered_with_the_conversion(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "vgg16.pth"
    with pytest.raises(UserError) as raised:
        read_weights(str(path), create_fcn8())
    assert str(path) in str(raised.value)
    assert f"{tmp_path / 'vgg16.safetensors'}" in str(raised.value)


def test_a_torch_file_equals_other_files_of_its_arrays(rng, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    arrays, segmenter = make_vgg16(rng), create_fcn8()
    torch.save({k: torch.from_numpy(a) for k, a in arrays.items()}, tmp_path / "x.pth")
    expected = read_weights(write(tmp_path / "x.npz", arrays), segmenter)
    found = read_weights(str(tmp_path / "x.pth"), segmenter)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(UserError, match=r"text\.pt"):
        read_weights(str(tmp_path / "text.pt"), segmenter)
