"""Weights of another network as a segmenter's first parameters.

Supported: VGG16, the FC-DenseNet of 2016, and files of `--mode=export`.
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

from iterinf.errors import UserError, summarise
from iterinf.segmenters.fc_densenet import FCDenseNet
from iterinf.segmenters.fcn8 import FCN8

# Of each block of VGG16: the index of its first convolution in torchvision's
# `features`, and the number of its convolutions; a ReLU follows each.
_VGG16_BLOCKS = ((0, 2), (5, 2), (10, 3), (17, 3), (24, 3))
_FROM_TORCH = (2, 3, 1, 0)  # kernel [out, in, h, w] -> [h, w, in, out]
_OWN = "segmenter/params/"  # how names in exported files begin
# What the images were normalised by when VGG16 was trained; RGB in [0, 1].
VGG16_INPUT = {
    "input_mean": (0.485, 0.456, 0.406),
    "input_std": (0.229, 0.224, 0.225),
}


def find_input(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads the input normalisation with which some weights were trained."""
    if path.suffix != ".safetensors":
        return VGG16_INPUT
    with _explain_errors(path):
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            is_own = any(name.startswith(_OWN) for name in file.keys())  # noqa: SIM118
    if is_own and "input" not in metadata:
        raise UserError(
            f"{path} lacks the metadata 'input'; use the file as --mode=export wrote it"
        )
    return json.loads(metadata["input"]) if is_own else VGG16_INPUT


def match_input(
    segmenter: nn.Module, normalisation: Mapping[str, Any], path: str
) -> nn.Module:
    """Makes a segmenter normalise images as the network did that gives its weights.

    Args:
      segmenter: The segmenter. An `input_mean` of 0 and an `input_std` of 1, the
        defaults of an FCN-8, are replaced; others must equal those of the weights.
      normalisation: The result of `find_input`.
      path: The file of the weights, for the error message.

    Raises:
      UserError: If the weights were trained with another normalisation.
    """
    if not isinstance(segmenter, FCN8):
        return segmenter
    for name, wanted in normalisation.items():
        configured, default = getattr(segmenter, name), getattr(FCN8, name)
        if not np.allclose(configured, default) and not np.allclose(configured, wanted):
            raise UserError(
                f"config.segmenter.model.{name} is {tuple(configured)}, but the "
                f"weights in {path} were trained with {tuple(wanted)}: expected that, "
                f"or the default {default}, which the weights' value replaces"
            )
    return segmenter.clone(**{name: tuple(v) for name, v in normalisation.items()})


def describe_input(segmenter: nn.Module) -> dict[str, tuple[float, ...]]:
    """Returns a segmenter's input normalisation; empty if it has none."""
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
      segmenter: The segmenter, with the widths of the weights.

    Returns:
      Arrays by the path of the parameter that they replace, e.g. conv1_1/kernel.

    Raises:
      UserError: if the file cannot be read, or an array is missing or of another shape
        than the network's.
    """
    with _explain_errors(pathlib.Path(path)):
        arrays = _read_arrays(pathlib.Path(path))
        own = {
            name.removeprefix(_OWN): array
            for name, array in arrays.items()
            if name.startswith(_OWN)
        }
        if own:
            return own
        if isinstance(segmenter, FCN8):
            converted = _convert_vgg16(arrays)
        elif isinstance(segmenter, FCDenseNet):
            converted = _convert_fc_densenet(arrays, segmenter)
        else:
            name = type(segmenter).__name__
            raise UserError(f"{path}: these weights cannot be converted for a {name}")
        return {name: array.astype(np.float32) for name, array in converted}


def replace_parameters(
    params: Mapping[str, Any], found: Mapping[str, np.ndarray], path: str
) -> dict[str, Any]:
    """Replaces a network's parameters by the arrays found in a file.

    Args:
      params: Parameters, nested.
      found: Arrays by their path in `params`, e.g. conv1_1/kernel.
      path: The file, for the error message.

    Raises:
      UserError: If an array has another shape, or belongs to another network.
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
    """Says which layers start from a file of weights, and which from scratch."""
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
    """Reads the arrays of a file; no code in the file runs."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix in (".pth", ".pt"):
        import torch

        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    raise UserError(
        f"cannot tell what {path} is, expected .pth, .pt, .safetensors or .npz"
    )


@contextlib.contextmanager
def _explain_errors(path: pathlib.Path) -> Iterator[None]:
    """Converts the errors of three readers, which document none, to UserError."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        advice = ""
        if error.name == "torch":
            advice = (
                "; or convert it where that is installed: "
                'python -c "import torch, safetensors.torch as s; '
                f"s.save_file(torch.load('{path}', weights_only=True), "
                f"'{path.with_suffix('.safetensors')}')\""
            )
        raise UserError(
            f"{path} needs a package: pip install {error.name}{advice}"
        ) from error
    except KeyError as error:
        raise UserError(f"{path} has no array {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        reason = summarise(error)
        if "pickle" in reason:  # NumPy advises to load it nevertheless
            reason = "no arrays of numbers"
        raise UserError(
            f"{path} is damaged or does not hold the weights: {reason}"
        ) from error


def _convert_vgg16(
    arrays: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    """Converts convolutions, and the matrices [out, in] of fc6 and fc7, if present.

    fc6 was a matrix that read the 7x7x512 grid, and fc7 one that read fc6.
    """
    for block, (first, count) in enumerate(_VGG16_BLOCKS, start=1):
        for i in range(count):
            ours, theirs = f"conv{block}_{i + 1}", f"features.{first + 2 * i}"
            kernel = _take(arrays, f"{theirs}.weight", 4)
            yield f"{ours}/kernel", kernel.transpose(_FROM_TORCH)
            yield f"{ours}/bias", arrays[f"{theirs}.bias"]
    if not any(name.startswith("classifier.") for name in arrays):
        return
    for ours, index, size in (("fc6", 0, 7), ("fc7", 3, 1)):
        matrix = _take(arrays, f"classifier.{index}.weight", 2)
        if matrix.shape[1] % size**2:
            raise ValueError(f"classifier.{index}.weight has shape {matrix.shape}")
        grid = matrix.reshape(len(matrix), -1, size, size)
        yield f"{ours}/kernel", grid.transpose(_FROM_TORCH)
        yield f"{ours}/bias", arrays[f"classifier.{index}.bias"]


def _take(arrays: Mapping[str, np.ndarray], name: str, num_axes: int) -> np.ndarray:
    if arrays[name].ndim != num_axes:
        shape = arrays[name].shape
        raise ValueError(f"{name} has shape {shape}, expected {num_axes} axes")
    return arrays[name]


def _convert_fc_densenet(
    arrays: Mapping[str, np.ndarray], segmenter: FCDenseNet
) -> Iterator[tuple[str, np.ndarray]]:
    """Takes arr_0, arr_1, ... in the order in which the network runs."""
    layers = list(_list_fc_densenet_layers(segmenter))
    expected = sum(6 if kind == "layer" else 2 for _, kind in layers)
    if len(arrays) != expected:
        raise ValueError(f"{len(arrays)} arrays, expected {expected}")
    ordered = (arrays[f"arr_{i}"] for i in range(expected))
    for name, kind in layers:
        module = name
        if kind == "layer":
            module = f"{name}/conv"
            yield f"{name}/bias", next(ordered)
            yield f"{name}/scale", next(ordered)
            next(ordered), next(ordered)  # mean, inverse deviation: never updated
        axes = (2, 3, 0, 1) if kind == "upsampling" else _FROM_TORCH
        yield f"{module}/kernel", next(ordered).transpose(axes)
        yield f"{module}/bias", next(ordered)


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
