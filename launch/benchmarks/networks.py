"""Forward passes and training steps beside the same networks in PyTorch."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn import functional

from iterinf import Batch, Candidate, create_refiner, create_segmenter
from iterinf.training.loop import create_train_state, make_train_step
from iterinf.training.losses import compute_reconstruction_loss
from iterinf.training.objectives import make_segmenter_loss
from iterinf.training.optimizer import create_optimizer
from launch.benchmarks import torch_networks
from launch.benchmarks.measure import Case, count_flops
from launch.benchmarks.sizes import Size, choose_work

_NUM_CLASSES = 11
LEVEL = 4  # that joins h
# Largest distance from a peer's maps, as a share of theirs from their mean. A DAE of
# numbers of 8 bits, which take other switches, is .19 from that of float32, two such
# at most .27 from each other; one that does not see h is .87 off.
_TOLERANCES = {"float32": 1e-2, "bfloat16": 0.4}


def list_dae_forward() -> Iterator[Case]:
    """r(y, h), with what h contributes computed before."""
    work = choose_work()
    for size in work.daes:
        refiner, variables, candidate, _ = make_dae(size, work.dtype)
        condition = jax.jit(functools.partial(refiner.apply, method="condition"))(
            variables, candidate
        )
        reconstruct = functools.partial(refiner.apply, method="reconstruct")
        args = (variables, candidate.y, condition)
        to = functools.partial(to_torch, variables, candidate, dtype=work.dtype)

        def make_peer(compile, *, channels_last, to=to):
            params, y, h = to(channels_last=channels_last)
            contribution = torch_networks.condition(h, params, "pool4")
            forward = compile(torch_networks.reconstruct)
            call = functools.partial(forward, y, contribution, params, LEVEL)
            return torch.inference_mode()(call)

        peers = torch_networks.list_peers(make_peer)
        _check_maps(peers, jax.jit(reconstruct)(*args), work.dtype)
        yield Case(
            "dae_forward",
            size.describe(),
            jax.jit(reconstruct),
            args,
            peers,
            count_flops(reconstruct, *args),
            work.dtype,
        )


def list_dae_train_step() -> Iterator[Case]:
    """The gradient of Eq. 5 at a given y and h, and RMSprop's update."""
    work = choose_work()
    for size in work.daes:
        refiner, variables, candidate, label = make_dae(size, work.dtype)

        def compute_loss(params, candidate, batch, key, refiner=refiner):
            del key
            apply = functools.partial(refiner.apply, {"params": params})
            condition = apply(candidate, method="condition")
            logits = apply(candidate.y, condition, method="compute_logits")
            return compute_reconstruction_loss(logits, batch.label)

        to = functools.partial(to_torch, variables, candidate)
        truth = torch_networks.to_tensor(label)

        def make_peer(compile, *, channels_last, to=to, truth=truth):
            params, y, h = to(channels_last=channels_last)
            loss = functools.partial(compile(_compute_dae_loss), y, h, truth)
            return torch_networks.make_step(params, loss, work.dtype)

        peers = torch_networks.list_peers(make_peer)
        batch = Batch(candidate.image, jnp.asarray(label))
        yield _make_step_case(
            "dae_train_step",
            size.describe(),
            (compute_loss, variables["params"], candidate, batch),
            peers,
        )


def make_dae(
    size: Size, dtype: str
) -> tuple[Any, Any, Candidate, Int[np.ndarray, "b h w"]]:
    """Returns a DAE with random parameters, and random y, features and labels."""
    generator = np.random.default_rng(0)
    shape = (size.batch, size.height, size.width)
    logits = generator.normal(size=(*shape, _NUM_CLASSES)).astype(np.float32)
    features = generator.normal(
        size=(size.batch, size.height // 16, size.width // 16, size.channels)
    ).astype(np.float32)
    image = generator.uniform(size=(*shape, 3)).astype(np.float32)
    label = generator.integers(0, _NUM_CLASSES, shape)
    candidate = Candidate(
        jax.nn.softmax(logits), {"pool4": jnp.asarray(features)}, jnp.asarray(image)
    )
    refiner = create_refiner(
        "dae", num_classes=_NUM_CLASSES, widths=size.widths, dtype=jnp.dtype(dtype)
    )
    variables = jax.jit(refiner.init)(jax.random.key(0), candidate)
    return refiner, variables, candidate, label


def to_torch(
    variables: Any, candidate: Candidate, *, channels_last: bool, dtype: str = "float32"
) -> tuple[torch_networks.Parameters, torch.Tensor, torch.Tensor]:
    """Parameters, y (always in float32) and h, in PyTorch's order of axes."""
    params = torch_networks.to_parameters(
        variables["params"], channels_last=channels_last, dtype=dtype
    )
    y = torch_networks.to_maps(candidate.y, channels_last=channels_last)
    h = torch_networks.to_maps(
        candidate.features["pool4"], channels_last=channels_last, dtype=dtype
    )
    return params, y, h


def _compute_dae_loss(y, h, label, params):
    contribution = torch_networks.condition(h, params, "pool4")
    r = torch_networks.reconstruct(y, contribution, params, LEVEL)
    truth = functional.one_hot(label, _NUM_CLASSES).permute(0, 3, 1, 2)
    squared = (r - truth).square().sum(dim=1).mean()
    return squared + functional.nll_loss(torch.log(r + 1e-30), label)


def list_fc_densenet_forward() -> Iterator[Case]:
    """Scores; the batch's statistics normalise."""
    dtype = choose_work().dtype
    segmenter, variables, images, _ = make_densenet()

    def segment(variables, images):
        return segmenter.apply(variables, images)[0]

    def make_peer(compile, *, channels_last):
        params, x = _to_torch(
            variables, images, channels_last=channels_last, dtype=dtype
        )
        forward = compile(torch_networks.segment)
        call = functools.partial(forward, x, params, *_list_blocks(segmenter))
        return torch.inference_mode()(call)

    args = (variables, jnp.asarray(images))
    peers = torch_networks.list_peers(make_peer)
    _check_maps(peers, jax.jit(segment)(*args), dtype)
    yield Case(
        "fc_densenet_forward",
        describe_images(images),
        jax.jit(segment),
        args,
        peers,
        count_flops(segment, *args),
        dtype,
    )


def list_fc_densenet_train_step() -> Iterator[Case]:
    """The gradient of the cross-entropy, dropout on, and RMSprop's update."""
    dtype = choose_work().dtype
    segmenter, variables, images, label = make_densenet()
    truth = torch_networks.to_tensor(label)

    def make_peer(compile, *, channels_last):
        params, x = _to_torch(variables, images, channels_last=channels_last)
        blocks = (*_list_blocks(segmenter), segmenter.dropout)
        loss = functools.partial(compile(_compute_segmenter_loss), x, truth, blocks)
        return torch_networks.make_step(params, loss, dtype)

    peers = torch_networks.list_peers(make_peer)
    batch = Batch(jnp.asarray(images), jnp.asarray(label))
    yield _make_step_case(
        "fc_densenet_train_step",
        describe_images(images),
        (make_segmenter_loss(segmenter), variables["params"], None, batch),
        peers,
    )


def make_densenet() -> tuple[
    Any, Any, Float[np.ndarray, "b h w 3"], Int[np.ndarray, "b h w"]
]:
    """An FC-DenseNet103 of random parameters, with images and labels."""
    work = choose_work()
    segmenter = create_segmenter(
        "fc_densenet103",
        num_classes=_NUM_CLASSES,
        statistics="batch",
        dtype=jnp.dtype(work.dtype),
    )
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(*work.densenet_images, 3)).astype(np.float32)
    label = generator.integers(0, _NUM_CLASSES, images.shape[:3])
    variables = jax.jit(segmenter.init)(jax.random.key(0), jnp.asarray(images))
    return segmenter, variables, images, label


def describe_images(images: Float[np.ndarray, "b h w 3"]) -> str:
    """Their number and size."""
    return "x".join(map(str, images.shape[:3]))


def _list_blocks(segmenter: Any) -> tuple[tuple[int, ...], int]:
    return segmenter.blocks, segmenter.bottleneck


def _to_torch(
    variables: Any,
    images: Float[np.ndarray, "b h w 3"],
    *,
    channels_last: bool,
    dtype: str = "float32",
) -> tuple[torch_networks.Parameters, torch.Tensor]:
    options: dict[str, Any] = {"channels_last": channels_last, "dtype": dtype}
    params = torch_networks.to_parameters(variables["params"], **options)
    return params, torch_networks.to_maps(images, **options)


def _compute_segmenter_loss(x, label, blocks, params):
    return functional.cross_entropy(torch_networks.segment(x, params, *blocks), label)


def _check_maps(
    peers: Mapping[str, Callable[[], torch.Tensor]], expected: Any, dtype: str
) -> None:
    """Raises AssertionError for the first peer that computes something else."""
    for name, peer in peers.items():
        found = peer().permute(0, 2, 3, 1).float().cpu().numpy()
        spread = np.linalg.norm(expected - np.mean(expected))
        distance = np.linalg.norm(found - expected) / spread
        if not distance < _TOLERANCES[dtype]:
            raise AssertionError(f"{name}'s maps are {distance:.2g} away")


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
    flops, dtype = count_flops(step, *args), choose_work().dtype
    return Case(name, sizes, jax.jit(step), args, peers, flops, dtype)
