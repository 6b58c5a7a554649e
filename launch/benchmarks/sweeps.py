"""The sweep of validation beside the loops that the 2017 code had, in PyTorch."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from iterinf import Batch
from iterinf.evaluation.sweep import count_refinements
from iterinf.evaluation.tally import Spec
from iterinf.segmenters import create_segmenter
from launch.benchmarks import torch_networks
from launch.benchmarks.measure import Case, count_flops
from launch.benchmarks.networks import LEVEL, make_dae, to_torch
from launch.benchmarks.sizes import choose_work

_STEP_SIZES = (0.01, 0.02, 0.05, 0.08, 0.1, 0.5, 1.0)
# Rounding grows along longer steps: PyTorch's layouts differ by 4% of the pixels there.
_SHORT = slice(0, 5)
# Share of the pixels that may be counted elsewhere. Numbers of 8 bits move r by a fifth
# of its distance from uniform, in all directions, so that counts differ little.
_MOST = {"float32": 1e-3, "bfloat16": 1e-2}
_NUM_ITERATIONS = 10
_NUM_CLASSES = 11


def list_sweep() -> Iterator[Case]:
    """Confusion matrices of all images, step sizes and iterations, y and h given."""
    work = choose_work()
    for size in work.sweeps:
        refiner, variables, candidate, label = make_dae(size, work.dtype)
        image = np.asarray(candidate.image * 255).astype(np.uint8)
        outputs = {"probabilities": candidate.y, **candidate.features}
        split = Batch(*jax.device_get((image, label, outputs)))
        count = functools.partial(
            count_refinements,
            create_segmenter(
                "precomputed", num_classes=_NUM_CLASSES, dtype=jnp.dtype(work.dtype)
            ),
            refiner,
            {"segmenter": {}, "refiner": variables},
            split,
            step_sizes=_STEP_SIZES,
            num_iterations=_NUM_ITERATIONS,
            spec=Spec(_NUM_CLASSES, None),  # what the peers count
            batch_size=work.sweep_batch,
        )
        peers = torch_networks.list_peers(
            functools.partial(_make_peer, variables, candidate, label, work.dtype)
        )
        _check_counts(peers, count().refined.confusion.sum(axis=0), work.dtype)
        length = f"{len(_STEP_SIZES)} step sizes, {_NUM_ITERATIONS} iterations"
        yield Case(
            "sweep",
            f"{size.describe()}, {length}",
            count,
            (),
            peers,
            _count_flops(refiner, variables, candidate),
            work.dtype,
        )


def _check_counts(
    peers: Mapping[str, Callable[[], np.ndarray]],
    expected: np.ndarray,
    dtype: str,
) -> None:
    """Raises AssertionError for the first peer that counts otherwise."""
    for name, peer in peers.items():
        differences = np.abs(peer() - expected)[_SHORT].sum(axis=(-2, -1))
        moved = differences.max() / expected[0, 0].sum()
        if moved > _MOST[dtype]:
            raise AssertionError(f"{name} counts {moved:.1%} of the pixels elsewhere")


def _count_flops(refiner: Any, variables: Any, candidate: Any) -> float:
    """Of all reconstructions; the first is one for all step sizes."""
    condition, reconstruct = (
        functools.partial(refiner.apply, method=name)
        for name in ("condition", "reconstruct")
    )
    shapes = jax.eval_shape(condition, variables, candidate)
    num_reconstructions = 1 + len(_STEP_SIZES) * (_NUM_ITERATIONS - 1)
    return count_flops(condition, variables, candidate) + (
        num_reconstructions * count_flops(reconstruct, variables, candidate.y, shapes)
    )


def _make_peer(
    variables: Any,
    candidate: Any,
    label: Any,
    dtype: str,
    compile: Callable[..., Any],
    *,
    channels_last: bool,
) -> Callable[[], np.ndarray]:
    """A loop over images, step sizes and iterations; metrics on the host."""
    params, y, h = to_torch(
        variables, candidate, channels_last=channels_last, dtype=dtype
    )
    reconstruct = compile(torch_networks.reconstruct)

    @torch.inference_mode()
    def sweep() -> np.ndarray:
        counts = np.zeros(
            (len(_STEP_SIZES), _NUM_ITERATIONS, _NUM_CLASSES, _NUM_CLASSES), np.int64
        )
        for i in range(len(y)):
            contribution = torch_networks.condition(h[i : i + 1], params, "pool4")
            for s, step_size in enumerate(_STEP_SIZES):
                moving = y[i : i + 1]
                for t in range(_NUM_ITERATIONS):
                    r = reconstruct(moving, contribution, params, LEVEL)
                    moving = (moving + step_size * (r - moving)).clamp(0, 1)
                    prediction = moving.argmax(dim=1)[0].cpu().numpy()
                    pairs = label[i] * _NUM_CLASSES + prediction
                    counts[s, t] += np.bincount(
                        pairs.ravel(), minlength=_NUM_CLASSES**2
                    ).reshape(_NUM_CLASSES, _NUM_CLASSES)
        return counts

    return sweep
