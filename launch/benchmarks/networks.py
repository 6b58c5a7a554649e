"""Forward passes and training steps beside the same networks in PyTorch."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn import functional

from iterinf import Batch, Candidate, create_refiner, create_segmenter
from iterinf.losses import compute_reconstruction_loss
from iterinf.objectives import make_segmenter_loss
from iterinf.training import create_optimizer, create_train_state, make_train_step
from launch.benchmarks import torch_networks
from launch.benchmarks.measure import Case, count_flops

_NUM_CLASSES = 11
LEVEL = 4  # that joins h


class Size(NamedTuple):
    """Of a DAE and of what it reads."""

    widths: tuple[int, ...]
    channels: int  # of h, which is pool4
    batch: int
    crop: int


DAES = (
    Size((16, 32, 64, 128, 256), 128, 10, 112),
    Size((64, 128, 256, 512, 1024, 2048), 512, 2, 224),
)


def list_dae_forward() -> Iterator[Case]:
    """r(y, h), with what h contributes computed before."""
    for size in DAES:
        refiner, variables, candidate, _ = make_dae(size)
        condition = jax.jit(functools.partial(refiner.apply, method="condition"))(
            variables, candidate
        )
        reconstruct = functools.partial(refiner.apply, method="reconstruct")
        args = (variables, candidate.y, condition)
        to = functools.partial(to_torch, variables, candidate)

        def make_peer(compile, *, channels_last, to=to):
            params, y, h = to(channels_last=channels_last)
            contribution = torch_networks.condition(h, params, "pool4")
            forward = compile(torch_networks.reconstruct)
            call = functools.partial(forward, y, contribution, params, LEVEL)
            return torch.inference_mode()(call)

        peers = torch_networks.list_peers(make_peer)
        _check_maps(peers, jax.jit(reconstruct)(*args), atol=1e-3)
        flops = count_flops(reconstruct, *args)
        yield Case(
            "dae_forward", describe(size), jax.jit(reconstruct), args, peers, flops
        )


def list_dae_train_step() -> Iterator[Case]:
    """The gradient of Eq. 5 at a given y and h, and RMSprop's update."""
    for size in DAES:
        refiner, variables, candidate, label = make_dae(size)

        def compute_loss(params, candidate, batch, key, refiner=refiner):
            del key
            r = refiner.apply({"params": params}, candidate)
            return compute_reconstruction_loss(r, batch.label)

        to = functools.partial(to_torch, variables, candidate)
        truth = torch_networks.to_tensor(label)

        def make_peer(compile, *, channels_last, to=to, truth=truth):
            params, y, h = to(channels_last=channels_last)
            loss = functools.partial(compile(_compute_dae_loss), y, h, truth)
            return torch_networks.make_step(params, loss)

        peers = torch_networks.list_peers(make_peer)
        batch = Batch(candidate.image, jnp.asarray(label))
        yield _make_step_case(
            "dae_train_step",
            describe(size),
            (compute_loss, variables["params"], candidate, batch),
            peers,
        )


def make_dae(size: Size) -> tuple[Any, Any, Candidate, Int[np.ndarray, "b h w"]]:
    """A DAE of random parameters, and random labellings, features and labels."""
    generator = np.random.default_rng(0)
    shape = (size.batch, size.crop, size.crop)
    logits = generator.normal(size=(*shape, _NUM_CLASSES)).astype(np.float32)
    features = generator.normal(
        size=(size.batch, size.crop // 16, size.crop // 16, size.channels)
    ).astype(np.float32)
    image = generator.uniform(size=(*shape, 3)).astype(np.float32)
    label = generator.integers(0, _NUM_CLASSES, shape)
    candidate = Candidate(
        jax.nn.softmax(logits), {"pool4": jnp.asarray(features)}, jnp.asarray(image)
    )
    refiner = create_refiner("dae", num_classes=_NUM_CLASSES, widths=size.widths)
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    return refiner, variables, candidate, label


def to_torch(
    variables: Any, candidate: Candidate, *, channels_last: bool
) -> tuple[torch_networks.Parameters, torch.Tensor, torch.Tensor]:
    """Parameters, y and h, in PyTorch's order of axes."""
    params = torch_networks.to_parameters(
        variables["params"], channels_last=channels_last
    )
    y, h = (
        torch_networks.to_maps(x, channels_last=channels_last)
        for x in (candidate.y, candidate.features["pool4"])
    )
    return params, y, h


def describe(size: Size) -> str:
    """In words."""
    return f"width {size.widths[0]}, {size.batch}x{size.crop}x{size.crop}x11"


def _compute_dae_loss(y, h, label, params):
    contribution = torch_networks.condition(h, params, "pool4")
    r = torch_networks.reconstruct(y, contribution, params, LEVEL)
    truth = functional.one_hot(label, _NUM_CLASSES).permute(0, 3, 1, 2)
    squared = (r - truth).square().sum(dim=1).mean()
    return squared + functional.nll_loss(torch.log(r + 1e-30), label)


def list_fc_densenet_forward() -> Iterator[Case]:
    """Scores; the batch's statistics normalise."""
    segmenter, variables, images, _ = make_densenet()

    def segment(variables, images):
        return segmenter.apply(variables, images)[0]

    def make_peer(compile, *, channels_last):
        params, x = _to_torch(variables, images, channels_last=channels_last)
        forward = compile(torch_networks.segment)
        call = functools.partial(forward, x, params, *_list_blocks(segmenter))
        return torch.inference_mode()(call)

    args = (variables, jnp.asarray(images))
    peers = torch_networks.list_peers(make_peer)
    _check_maps(peers, jax.jit(segment)(*args), atol=2e-2)
    flops = count_flops(segment, *args)
    yield Case(
        "fc_densenet_forward",
        f"{len(images)}x224x224",
        jax.jit(segment),
        args,
        peers,
        flops,
    )


def list_fc_densenet_train_step() -> Iterator[Case]:
    """The gradient of the cross-entropy, dropout on, and RMSprop's update."""
    segmenter, variables, images, label = make_densenet()
    truth = torch_networks.to_tensor(label)

    def make_peer(compile, *, channels_last):
        params, x = _to_torch(variables, images, channels_last=channels_last)
        blocks = (*_list_blocks(segmenter), segmenter.dropout)
        loss = functools.partial(compile(_compute_segmenter_loss), x, truth, blocks)
        return torch_networks.make_step(params, loss)

    peers = torch_networks.list_peers(make_peer)
    batch = Batch(jnp.asarray(images), jnp.asarray(label))
    yield _make_step_case(
        "fc_densenet_train_step",
        f"{len(images)}x224x224",
        (make_segmenter_loss(segmenter), variables["params"], None, batch),
        peers,
    )


def make_densenet() -> tuple[
    Any, Any, Float[np.ndarray, "b h w 3"], Int[np.ndarray, "b h w"]
]:
    """An FC-DenseNet103 of random parameters, with images and labels."""
    segmenter = create_segmenter(
        "fc_densenet103", num_classes=_NUM_CLASSES, statistics="batch"
    )
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(3, 224, 224, 3)).astype(np.float32)
    label = generator.integers(0, _NUM_CLASSES, images.shape[:3])
    variables = jax.jit(segmenter.init)(jax.random.key(0), jnp.asarray(images))
    return segmenter, variables, images, label


def _list_blocks(segmenter: Any) -> tuple[tuple[int, ...], int]:
    return segmenter.blocks, segmenter.bottleneck


def _to_torch(
    variables: Any, images: Float[np.ndarray, "b h w 3"], *, channels_last: bool
) -> tuple[torch_networks.Parameters, torch.Tensor]:
    params = torch_networks.to_parameters(
        variables["params"], channels_last=channels_last
    )
    return params, torch_networks.to_maps(images, channels_last=channels_last)


def _compute_segmenter_loss(x, label, blocks, params):
    return functional.cross_entropy(torch_networks.segment(x, params, *blocks), label)


def _check_maps(
    peers: Mapping[str, Callable[[], torch.Tensor]], expected: Any, *, atol: float
) -> None:
    """Raises AssertionError for the first peer that computes something else."""
    for name, peer in peers.items():
        found = peer().permute(0, 2, 3, 1).cpu().numpy()
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=name)


def _make_step_case(
    name: str, sizes: str, problem: tuple[Any, ...], peers: Mapping[str, Any]
) -> Case:
    """The project's own training step, of a loss, parameters and what they meet."""
    compute_loss, params, frozen, batch = problem
    optimizer = create_optimizer(
        "rmsprop", learning_rate=1e-5, decay_per_epoch=1.0, steps_per_epoch=1
    )
    state = create_train_state(params, optimizer, jax.random.key(0))
    step = make_train_step(compute_loss, optimizer)
    args = (state, frozen, batch)
    return Case(name, sizes, jax.jit(step), args, peers, count_flops(step, *args))
