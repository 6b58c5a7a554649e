"""The dense CRF on a generated scene, beside pydensecrf2 where that is installed."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

import iterinf
from iterinf.data import create_dataset
from launch.benchmarks.measure import Case

try:
    from pydensecrf import densecrf
except ImportError:  # it cannot be installed everywhere
    densecrf = None

HAS_PEER = densecrf is not None

NUM_ITERATIONS = 10
SPATIAL_WIDTH, COLOR_WIDTH = 3.0, 13.0
BILATERAL_WIDTHS = (80.0, 3.0)
WEIGHTS = (3.0, 10.0)  # of the spatial and of the bilateral kernel
_HEIGHT, _WIDTH = 360, 480


def list_dense_crf() -> Iterator[Case]:
    """Building the lattices and ten iterations, at a wide and a narrow kernel."""
    dataset = create_dataset(
        "streets",
        height=_HEIGHT,
        width=_WIDTH,
        num_train=1,
        num_validation=1,
        num_test=1,
    )
    image, label, *_ = dataset.train[0]
    k = dataset.num_classes
    logits = 4 * (np.arange(k) == np.minimum(label, k - 1)[..., None])
    logits = logits + np.random.default_rng(0).normal(size=logits.shape)
    y = np.asarray(jax.nn.softmax(logits.astype(np.float32)))
    for width in BILATERAL_WIDTHS:
        ours = functools.partial(
            iterinf.dense_crf, y, image, NUM_ITERATIONS, bilateral_width=width
        )
        peers = {}
        if HAS_PEER:
            peer = functools.partial(infer_by_peer, y, image, width)
            same = np.mean(np.asarray(ours()).argmax(-1) == peer().argmax(-1))
            if same < 0.999:
                raise AssertionError(f"{1 - same:.1%} of the labels differ")
            peers["pydensecrf2"] = peer
        sizes = f"{_HEIGHT}x{_WIDTH}x{k}, widths 3 and {width:g}"
        yield Case("dense_crf", sizes, ours, (), peers)


def make_peer(
    y: Float[np.ndarray, "h w k"], image: UInt8[np.ndarray, "h w 3"], width: float
) -> Any:
    """A pydensecrf of that image with that bilateral width, ready to infer."""
    height, image_width, k = y.shape
    crf = densecrf.DenseCRF2D(image_width, height, k)
    unary = -np.log(np.clip(y, 1e-5, 1)).reshape(-1, k).T
    crf.setUnaryEnergy(unary.astype(np.float32).copy())
    crf.addPairwiseGaussian(sxy=SPATIAL_WIDTH, compat=WEIGHTS[0])
    crf.addPairwiseBilateral(
        sxy=width, srgb=COLOR_WIDTH, rgbim=image.copy(), compat=WEIGHTS[1]
    )
    return crf


def infer_by_peer(
    y: Float[np.ndarray, "h w k"], image: UInt8[np.ndarray, "h w 3"], width: float
) -> Float[np.ndarray, "h w k"]:
    """pydensecrf2's probabilities, its lattices built anew."""
    inferred = np.array(make_peer(y, image, width).inference(NUM_ITERATIONS))
    return inferred.T.reshape(y.shape)
