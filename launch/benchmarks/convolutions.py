"""A network's convolutions with their gradients, and nothing else of it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from torch.nn import functional

from launch.benchmarks.measure import Case
from launch.benchmarks.networks import describe_images, make_dae, make_densenet
from launch.benchmarks.sizes import choose_work
from launch.benchmarks.torch_networks import list_peers, to_maps


class _Convolution(NamedTuple):
    shape: tuple[int, ...]  # of what it reads
    kernel: tuple[int, int, int, int]
    function: Callable[..., Any]
    reads_data: bool  # which needs no gradient


def list_dae_convolutions() -> Iterator[Case]:
    """Those of the cases of dae_train_step."""
    work = choose_work()
    for size in work.daes:
        refiner, variables, candidate, _ = make_dae(size, work.dtype)
        convolutions = _record(refiner.apply, variables, candidate, num_inputs=2)
        yield _make_case("dae_convolutions", size.describe(), convolutions)


def list_fc_densenet_convolutions() -> Iterator[Case]:
    """Those of the case of fc_densenet_train_step, but the transposed ones."""
    segmenter, variables, images, _ = make_densenet()
    convolutions = _record(segmenter.apply, variables, images, num_inputs=1)
    yield _make_case("fc_densenet_convolutions", describe_images(images), convolutions)


def _record(
    function: Callable[..., Any], *args: Any, num_inputs: int
) -> list[_Convolution]:
    """All convolutions of a call, of which the first `num_inputs` read data."""
    found: list[_Convolution] = []

    def note(call, inputs, options, context):
        module = context.module
        if isinstance(module, nn.Conv) and context.method_name == "__call__":
            shape = inputs[0].shape
            found.append(
                _Convolution(
                    shape,
                    (*module.kernel_size, shape[-1], module.features),
                    module.conv_general_dilated or jax.lax.conv_general_dilated,
                    reads_data=len(found) < num_inputs,
                )
            )
        return call(*inputs, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(function, *args)
    return found


def _make_case(name: str, sizes: str, convolutions: list[_Convolution]) -> Case:
    generator = np.random.default_rng(0)
    problems = [
        tuple(
            generator.normal(size=shape).astype(np.float32)
            for shape in (c.shape, c.kernel, (*c.shape[:3], c.kernel[3]))
        )
        for c in convolutions
    ]
    flops = sum(
        2 * np.prod(c.shape[:3]) * np.prod(c.kernel) * (2 if c.reads_data else 3)
        for c in convolutions
    )
    dtype = choose_work().dtype
    peers = list_peers(functools.partial(_make_peer, convolutions, problems, dtype))
    ours = jax.jit(functools.partial(_differentiate, convolutions))
    args = (jax.tree.map(lambda x: jnp.asarray(x, dtype), problems),)
    return Case(name, sizes, ours, args, peers, float(flops), dtype)


def _differentiate(
    convolutions: list[_Convolution], problems: list[tuple[Array, ...]]
) -> list[Any]:
    results = []
    for c, (x, kernel, gradient) in zip(convolutions, problems, strict=True):

        def convolve(x, kernel, function=c.function):
            numbers = ("NHWC", "HWIO", "NHWC")
            return function(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

        if c.reads_data:
            value, pull_back = jax.vjp(functools.partial(convolve, x), kernel)
        else:
            value, pull_back = jax.vjp(convolve, x, kernel)
        results.append((value, pull_back(gradient)))
    return results


def _make_peer(
    convolutions: list[_Convolution],
    problems: list[Any],
    dtype: str,
    compile: Callable[..., Any],
    *,
    channels_last: bool,
) -> Callable[[], Any]:
    to = functools.partial(to_maps, channels_last=channels_last, dtype=dtype)
    tensors = [
        (
            to(x).requires_grad_(not c.reads_data),
            to(kernel.transpose(3, 0, 1, 2)).requires_grad_(),
            to(gradient),
        )
        for c, (x, kernel, gradient) in zip(convolutions, problems, strict=True)
    ]

    def differentiate() -> list[Any]:
        results = []
        for x, kernel, gradient in tensors:
            value = functional.conv2d(x, kernel, padding="same")
            wanted = [z for z in (x, kernel) if z.requires_grad]
            results.append((value, torch.autograd.grad(value, wanted, gradient)))
        return results

    return compile(differentiate)
