"""The project's networks in PyTorch, of the same parameters, as peers."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch.nn import functional

from iterinf.errors import UserError
from launch.benchmarks.measure import summarize

_LAYOUTS = {"contiguous": False, "channels_last": True}

Parameters = dict[str, torch.Tensor]  # by path, e.g. down_0/kernel
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


class MakePeer(Protocol):
    """Makes a call without arguments, which it may compile in part."""

    def __call__(self, compile: Compile, *, channels_last: bool) -> Callable[[], Any]:
        """Returns the call."""
        ...


def list_peers(make: MakePeer) -> dict[str, Callable[[], Any]]:
    """A peer for either layout of memory; on a GPU one that is compiled as well.

    Compiled in the layout that cuDNN's kernels for bfloat16 work in, channels last.
    Left out, with a line on stderr, if this PyTorch cannot compile it. Each returns
    when its results are there.
    """
    peers = {
        name: _synchronize(make(_leave, channels_last=last))
        for name, last in _LAYOUTS.items()
    }
    if choose_device() == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        # One program a shape, as jit's: without `dynamic`, the second is a general one.
        compile = functools.partial(torch.compile, dynamic=False)
        compiled = _synchronize(make(compile, channels_last=True))
        try:
            compiled()
        except Exception as error:  # of compilers of many kinds
            print(f"no compiled peer: {summarize(error)}", file=sys.stderr)
        else:
            peers["channels_last, compiled"] = compiled
    return peers


def _leave(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _synchronize(call: Callable[[], Any]) -> Callable[[], Any]:
    if choose_device() == "cpu":
        return call

    def synchronized() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return synchronized


@functools.cache
def choose_device() -> str:
    """PyTorch's name of the device that JAX computes on.

    Raises:
      UserError: if PyTorch has none such.
    """
    backend = jax.default_backend()
    device = {"cpu": "cpu", "gpu": "cuda"}.get(backend, "")
    if not device or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"JAX computes on a {backend}, which this PyTorch cannot use; set "
            "JAX_PLATFORMS=cpu to compare both on the CPU"
        )
    return device


def to_tensor(array: Any) -> torch.Tensor:
    """A copy on the device that JAX computes on."""
    return torch.from_numpy(np.array(array)).to(choose_device())


def to_maps(array: Any, *, channels_last: bool, dtype: str = "float32") -> torch.Tensor:
    """[b h w c] as PyTorch's [b c h w], in either layout of memory."""
    maps = to_tensor(array).permute(0, 3, 1, 2).to(getattr(torch, dtype))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return maps.contiguous(memory_format=layout)


def to_parameters(
    params: Mapping[str, Any], *, channels_last: bool, dtype: str = "float32"
) -> Parameters:
    """Flax's, kernels [s t a b] as [b a s t], transposed ones [a b s t]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors = {}
    for path, value in flatten_dict(jax.device_get(params), sep="/").items():
        tensor = to_tensor(value).to(getattr(torch, dtype))
        if tensor.ndim == 4:
            axes = (2, 3, 0, 1) if path.startswith("upsampling") else (3, 2, 0, 1)
            tensor = tensor.permute(axes).contiguous(memory_format=layout)
        tensors[path] = tensor.requires_grad_()
    return tensors


def _convolve(x: torch.Tensor, params: Parameters, path: str) -> torch.Tensor:
    kernel, bias = params[f"{path}/kernel"], params.get(f"{path}/bias")
    return functional.conv2d(x, kernel, bias, padding="same")


def condition(h: torch.Tensor, params: Parameters, name: str) -> torch.Tensor:
    """Computes the contribution of h to a DAE."""
    return _convolve(h, params, f"join_{name}")


def reconstruct(
    y: torch.Tensor, contribution: torch.Tensor, params: Parameters, level: int
) -> torch.Tensor:
    """r(y, h) of a DAE that joins h at a level, 0 being y's; class probabilities.

    As in ours, y and r are float32 whatever the parameters are: in 8 bits a step of .01
    often leaves y where it is.
    """
    scores = _score(y.to(contribution.dtype), contribution, params, level)
    return functional.softmax(scores.float(), dim=1)


def _score(y, contribution, params, level):
    num_levels = sum(path.startswith("down_") for path in params) // 2
    x, places, sizes = y, [], []
    for i in range(num_levels):
        x = _convolve(x, params, f"down_{i}")
        if i == level:
            x = x + contribution
        sizes.append(x.shape[2:])
        x, place = functional.max_pool2d(functional.relu(x), 2, return_indices=True)
        places.append(place)
    for i in range(num_levels):
        size = sizes.pop()
        x = functional.max_unpool2d(x, places.pop(), 2, output_size=size)
        x = _convolve(x, params, f"up_{i}")
        if i < num_levels - 1:
            x = functional.relu(x)
    return x


def segment(
    images: torch.Tensor,
    params: Parameters,
    blocks: Sequence[int],
    bottleneck: int,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scores of an FC-DenseNet that the batch's statistics normalise."""

    def apply_layer(x, path):
        scale, bias = params[f"{path}/scale"], params[f"{path}/bias"]
        x = functional.batch_norm(x, None, None, scale, bias, training=True, eps=1e-4)
        x = _convolve(functional.relu(x), params, f"{path}/conv")
        return functional.dropout(x, dropout) if dropout else x

    def apply_block(stack, path, num_layers):
        new = []
        for i in range(1, num_layers + 1):
            new.append(apply_layer(stack, f"{path}_layer{i}"))
            stack = torch.cat([stack, new[-1]], dim=1)
        return stack, torch.cat(new, dim=1)

    stack, skips = _convolve(images, params, "first"), []
    for level, num_layers in enumerate(blocks, start=1):
        stack, _ = apply_block(stack, f"down{level}", num_layers)
        skips.append(stack)
        stack = functional.max_pool2d(apply_layer(stack, f"transition{level}"), 2)
    _, new = apply_block(stack, "bottleneck", bottleneck)
    for level in range(len(blocks), 0, -1):
        skip, path = skips[level - 1], f"upsampling{level}"
        kernel, bias = params[f"{path}/kernel"], params[f"{path}/bias"]
        x = functional.conv_transpose2d(new, kernel, bias, stride=2)
        x = x[:, :, : skip.shape[2], : skip.shape[3]]
        x = torch.cat([x, skip], dim=1)
        stack, new = apply_block(x, f"up{level}", blocks[level - 1])
    return _convolve(stack, params, "score")


def make_step(
    params: Parameters,
    compute_loss: Callable[[Parameters], torch.Tensor],
    dtype: str,
) -> Callable[[], torch.Tensor]:
    """A training step by RMSprop, of float32 parameters; returns the loss.

    Other dtypes than float32 are those of convolutions and what follows them.
    """
    optimizer = torch.optim.RMSprop(params.values(), lr=1e-5, alpha=0.9, eps=1e-8)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            choose_device(), getattr(torch, dtype), enabled=dtype != "float32"
        ):
            loss = compute_loss(params)
        loss.backward()
        optimizer.step()
        return loss

    return step
