"""The sweep of validation beside the loops that the 2017 code had, in PyTorch."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch

from iterinf import Batch
from iterinf.segmenters import create_segmenter
from iterinf.selection import count_refinements
from launch.benchmarks import torch_networks
from launch.benchmarks.measure import Case
from launch.benchmarks.networks import DAES, LEVEL, describe, make_dae, to_torch

_STEP_SIZES = (0.01, 0.02, 0.05, 0.08, 0.1, 0.5, 1.0)
# Rounding grows along longer steps: PyTorch's layouts differ by 4% of the pixels there.
_SHORT = slice(0, 5)
_NUM_ITERATIONS = 10
_NUM_CLASSES = 11
_SIZES = (DAES[0]._replace(batch=4, crop=176), DAES[1]._replace(batch=1, crop=224))


def list_sweep() -> Iterator[Case]:
    """Confusion matrices of all images, step sizes and iterations, y and h given."""
    for size in _SIZES:
        refiner, variables, candidate, label = make_dae(size)
        image = np.asarray(candidate.image * 255).astype(np.uint8)
        outputs = {"probabilities": candidate.y, **candidate.features}
        split = Batch(*jax.device_get((image, label, outputs)))
        count = functools.partial(
            count_refinements,
            create_segmenter("precomputed", num_classes=_NUM_CLASSES),
            refiner,
            {"segmenter": {}, "refiner": variables},
            split,
            step_sizes=_STEP_SIZES,
            num_iterations=_NUM_ITERATIONS,
            num_classes=_NUM_CLASSES,
            batch_size=1,
        )
        peers = torch_networks.list_peers(
            functools.partial(_make_peer, variables, candidate, label)
        )
        found, expected = count().refined.sum(axis=0), peers["channels_last"]()
        moved = np.abs(found - expected).sum(axis=(-2, -1))[_SHORT]
        moved = moved.max() / label.size
        if moved > 1e-3:
            raise AssertionError(f"{moved:.1%} of the pixels are counted elsewhere")
        work = f"{len(_STEP_SIZES)} step sizes, {_NUM_ITERATIONS} iterations"
        yield Case("sweep", f"{describe(size)}, {work}", count, (), peers)


def _make_peer(
    variables: Any,
    candidate: Any,
    label: Any,
    compile: Callable[..., Any],
    *,
    channels_last: bool,
) -> Callable[[], np.ndarray]:
    """A loop over images, step sizes and iterations; metrics on the host."""
    params, y, h = to_torch(variables, candidate, channels_last=channels_last)
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
