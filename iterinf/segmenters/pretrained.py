"""Weights of another network as a segmenter's first parameters.

Other people's are VGG16 and the FC-DenseNet of 2016; `--mode=export` writes our own.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from iterinf.errors import UserError
from iterinf.segmenters.fc_densenet import FCDenseNet
from iterinf.segmenters.fcn8 import FCN8

# Convolutions of VGG16 in torchvision's `features`, in order.
_VGG16 = {
    "conv1_1": 0,
    "conv1_2": 2,
    "conv2_1": 5,
    "conv2_2": 7,
    "conv3_1": 10,
    "conv3_2": 12,
    "conv3_3": 14,
    "conv4_1": 17,
    "conv4_2": 19,
    "conv4_3": 21,
    "conv5_1": 24,
    "conv5_2": 26,
    "conv5_3": 28,
}
_FROM_TORCH = (2, 3, 1, 0)  # kernel [out, in, h, w] -> [h, w, in, out]
_OWN = "segmenter/params/"  # how names in exported files begin
# What the images were normalised by when VGG16 was trained; RGB in [0, 1].
VGG16_INPUT = {
    "input_mean": (0.485, 0.456, 0.406),
    "input_std": (0.229, 0.224, 0.225),
}


def find_input(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads what images were normalised by when some weights were trained."""
    if path.suffix != ".safetensors":
        return VGG16_INPUT
    with _explain_errors(path):
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            is_own = any(name.startswith(_OWN) for name in file.keys())  # noqa: SIM118
    if is_own and "input" not in metadata:
        raise UserError(f"{path} has lost its metadata; take it as exported")
    return json.loads(metadata["input"]) if is_own else VGG16_INPUT


def match_input(
    segmenter: nn.Module, numbers: Mapping[str, Any], path: str
) -> nn.Module:
    """Makes a segmenter normalise images as the network did that gives its weights.

    Args:
      segmenter: The segmenter. An `input_mean` of 0 and an `input_std` of 1, the
        defaults of an FCN-8, are replaced; others must equal those of the weights.
      numbers: The result of `find_input`.
      path: The file of the weights, for the error message.

    Raises:
      UserError: If the weights were trained with another normalisation.
    """
    if not isinstance(segmenter, FCN8):
        return segmenter
    for name, wanted in numbers.items():
        configured, default = getattr(segmenter, name), getattr(FCN8, name)
        if not np.allclose(configured, default) and not np.allclose(configured, wanted):
            raise UserError(
                f"config.segmenter.model.{name} is {tuple(configured)}, but the "
                f"weights in {path} were trained with {tuple(wanted)}: expected that, "
                f"or {default}, which takes it from the weights"
            )
    return segmenter.clone(**{name: tuple(values) for name, values in numbers.items()})


def describe_input(segmenter: nn.Module) -> dict[str, tuple[float, ...]]:
    """Returns what a segmenter normalises images by; empty if by nothing."""
    if not isinstance(segmenter, FCN8):
        return {}
    return {name: getattr(segmenter, name) for name in VGG16_INPUT}


def read_weights(path: str, segmenter: nn.Module) -> dict[str, np.ndarray]:
    """Reads weights for a segmenter.

    Args:
      path: weights.safetensors of `--mode=export`; or for an FCN-8, a VGG16
        in torchvision's layout (.pth, .pt, .safetensors), which becomes conv1_1 to
        fc7, or to conv5_3 if the file has no `classifier`; for an FC-DenseNet, the .npz
        that the authors' Lasagne code writes: arr_0, arr_1, ... in the order in which
        the network runs, a layer being beta, gamma, mean, inverse deviation, W, b.
      segmenter: of the size of the weights.

    Returns:
      Arrays by the path of the parameter that they replace, e.g. conv1_1/kernel.

    Raises:
      UserError: if the file cannot be read, or an array is missing or of another shape
        than the network's.
    """
    arrays = _read_arrays(pathlib.Path(path))
    if any(name.startswith(_OWN) for name in arrays):
        return {
            name.removeprefix(_OWN): array
            for name, array in arrays.items()
            if name.startswith(_OWN)
        }
    if isinstance(segmenter, FCN8):
        return dict(_convert_vgg16(arrays, path))
    if isinstance(segmenter, FCDenseNet):
        return dict(_convert_fc_densenet(arrays, segmenter, path))
    name = type(segmenter).__name__
    raise UserError(f"{path}: there is no converter to a {name}")


def replace_parameters(
    params: Mapping[str, Any], found: Mapping[str, np.ndarray], path: str
) -> dict[str, Any]:
    """Puts arrays in the place of a network's own.

    Args:
      params: nested, of the network.
      found: arrays by their path in it, e.g. conv1_1/kernel.
      path: of the file, for the error.

    Raises:
      UserError: if one is of another shape, or of a network with other layers.
    """
    flat = flatten_dict(params, sep="/")
    for name, array in found.items():
        if name not in flat:
            raise UserError(f"{path} is of another network: this one has no {name}")
        if array.shape != flat[name].shape:
            raise UserError(
                f"{path}: {name} is {list(array.shape)} there, expected "
                f"{list(flat[name].shape)}"
            )
    replaced = {name: jax.numpy.asarray(array) for name, array in found.items()}
    return unflatten_dict(flat | replaced, sep="/")


def describe_replaced(
    params: Mapping[str, Any], found: Mapping[str, np.ndarray], path: str
) -> str:
    """Says which layers start from a file of weights, and which from scratch.

    Args:
      params: nested, of the network.
      found: as for `replace_parameters`.
      path: of the file.
    """
    layers = dict.fromkeys(
        name.rpartition("/")[0] for name in flatten_dict(params, sep="/")
    )
    taken = {name.rpartition("/")[0] for name in found}
    fresh = [layer for layer in layers if layer not in taken]
    return (
        f"{path}: {len(layers) - len(fresh)} of {len(layers)} layers start from it; "
        f"from scratch: {', '.join(fresh) or 'none'}"
    )


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix in (".pth", ".pt"):
        return _read_torch_file(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(
            f"cannot tell what {path} is, expected .pth, .pt, .safetensors or .npz"
        )
    with _explain_errors(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        from safetensors.numpy import load_file

        return load_file(path)


def _read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict; no code in the file runs."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch (pip install torch); or convert it where that is "
            'installed: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path}', weights_only=True), "
            f"'{path.with_suffix('.safetensors')}')\""
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # of many kinds, by what is wrong with the file
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {path} as a state dict: {reason}") from error


@contextlib.contextmanager
def _explain_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{path} needs the package safetensors: pip install safetensors"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of two readers, which document none
        raise UserError(f"{path} holds no arrays that can be read: {error}") from error


def _convert_vgg16(
    arrays: Mapping[str, np.ndarray], path: str
) -> Iterator[tuple[str, np.ndarray]]:
    """fc6 and fc7 were matrices [out, in]: of the 7x7x512 grid, and of fc6."""
    for ours, theirs in _VGG16.items():
        kernel = _take(arrays, f"features.{theirs}.weight", path, ndim=4)
        yield f"{ours}/kernel", kernel.transpose(_FROM_TORCH)
        yield f"{ours}/bias", _take(arrays, f"features.{theirs}.bias", path, ndim=1)
    if not any(name.startswith("classifier.") for name in arrays):
        return  # convolutions alone: fc6 and fc7 start fresh
    for ours, theirs, size in (("fc6", 0, 7), ("fc7", 3, 1)):
        kernel = _take(arrays, f"classifier.{theirs}.weight", path, ndim=2)
        if kernel.shape[1] % size**2:
            raise UserError(
                f"{path}: classifier.{theirs}.weight is {list(kernel.shape)}, expected "
                f"a multiple of {size**2} columns"
            )
        grid = kernel.reshape(len(kernel), -1, size, size)
        yield f"{ours}/kernel", grid.transpose(_FROM_TORCH)
        yield f"{ours}/bias", _take(arrays, f"classifier.{theirs}.bias", path, ndim=1)


def _convert_fc_densenet(
    arrays: Mapping[str, np.ndarray], segmenter: FCDenseNet, path: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Takes arr_0, arr_1, ... in the order in which the network runs."""
    layers = list(_list_fc_densenet_layers(segmenter))
    expected = sum(6 if kind == "layer" else 2 for _, kind in layers)
    if len(arrays) != expected:
        raise UserError(f"{path} holds {len(arrays)} arrays, expected {expected}")
    order = iter(range(expected))

    def take(ndim: int) -> np.ndarray:
        return _take(arrays, f"arr_{next(order)}", path, ndim=ndim)

    for name, kind in layers:
        if kind == "layer":
            yield f"{name}/bias", take(1)
            yield f"{name}/scale", take(1)
            take(1), take(1)  # mean and inverse deviation, never updated there
        module = f"{name}/conv" if kind == "layer" else name
        axes = (2, 3, 0, 1) if kind == "upsampling" else _FROM_TORCH
        yield f"{module}/kernel", take(4).transpose(axes)
        yield f"{module}/bias", take(1)


def _list_fc_densenet_layers(segmenter: FCDenseNet) -> Iterator[tuple[str, str]]:
    """Names in the order in which they run; a "layer" begins with a normalisation."""

    def list_block(name: str, num_layers: int) -> Iterator[tuple[str, str]]:
        return ((f"{name}_layer{i}", "layer") for i in range(1, num_layers + 1))

    levels = list(enumerate(segmenter.blocks, start=1))
    yield "first", "convolution"
    for level, num_layers in levels:
        yield from list_block(f"down{level}", num_layers)
        yield f"transition{level}", "layer"
    yield from list_block("bottleneck", segmenter.bottleneck)
    for level, num_layers in reversed(levels):
        yield f"upsampling{level}", "upsampling"
        yield from list_block(f"up{level}", num_layers)
    yield "score", "convolution"


def _take(
    arrays: Mapping[str, np.ndarray], name: str, path: str, *, ndim: int
) -> np.ndarray:
    if name not in arrays:
        raise UserError(f"{path} has no array {name}")
    array = np.asarray(arrays[name])
    if array.ndim != ndim:
        raise UserError(f"{path}: {name} is {list(array.shape)}, expected {ndim} axes")
    return array.astype(np.float32)
