"""The dense CRF beside pydensecrf2 on CamVid: the same labels, and the time they take.

    python -m launch.benchmark_crf --config=configs/camvid_small.py \
        --workdir=runs/camvid_small --config.dataset.options.path=PATH_OF_CAMVID

Needs the extra `bench`. The workdir's segmenter gives initial predictions for
validation frames at 360x480. Times are medians over --repeats of interleaved calls,
after a first one that compiles.
"""

import os
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jaxtyping import Array, Float, UInt8
from ml_collections import config_flags

import iterinf
from iterinf.data import create_dataset
from iterinf.errors import UserError
from iterinf.experiment.stages import Experiment
from iterinf.ops.logarithm import log_clipped
from iterinf.ops.permutohedral import build_lattice, filter_on_lattice
from iterinf.refiners.dense_crf import (
    LOWEST_PROBABILITY,
    make_condition,
    make_features,
    update,
)
from iterinf.training.objectives import propose, to_unit_range
from launch.benchmarks.crf import (
    BILATERAL_WIDTHS,
    COLOR_WIDTH,
    HAS_PEER,
    NUM_ITERATIONS,
    SPATIAL_WIDTH,
    WEIGHTS,
    infer_by_peer,
    make_peer,
)
from launch.benchmarks.measure import time_interleaved

if not HAS_PEER:
    sys.exit("launch.benchmark_crf: no pydensecrf; pip install -e '.[bench]'")

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Of a finished run of that config.")
_FRAMES = flags.DEFINE_integer("frames", 20, "Compared with pydensecrf2.", 4)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Calls that a median is over.", 1)


def read_frames(
    config: Any, workdir: pathlib.Path, num_frames: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, "n h w k"]]:
    """Validation frames at full size, and what the workdir's segmenter says of them."""
    if not (workdir / "segmenter" / "summary.json").exists():
        raise UserError(f"{workdir} holds no trained segmenter; run the config first")
    experiment = Experiment(config, workdir)
    options = config.dataset.options.to_dict() | {"scale": 1}
    validation = create_dataset(config.dataset.name, **options).validation
    indices = np.linspace(0, len(validation) - 1, num_frames).astype(int).tolist()
    segmenter, variables = experiment.segmenter, experiment.train_segmenter()
    segment = jax.jit(lambda *args: propose(segmenter, *args).y)
    batches = [validation.stack([index]) for index in indices]
    proposals = [
        np.asarray(segment(variables, to_unit_range(batch))) for batch in batches
    ]
    images = np.concatenate([np.asarray(batch.image) for batch in batches])
    return images, np.concatenate(proposals)


def compare(
    images: UInt8[np.ndarray, "n h w 3"],
    proposals: Float[np.ndarray, "n h w k"],
    width: float,
) -> tuple[float, float, float]:
    """Share of equal labels, mean |dQ|, and share of labels that the CRF changes."""
    same, distance, changed = [], [], []
    for y, image in zip(proposals, images, strict=True):
        ours = np.asarray(
            iterinf.dense_crf(y, image, NUM_ITERATIONS, bilateral_width=width)
        )
        theirs = infer_by_peer(y, image, width)
        same.append(np.mean(ours.argmax(axis=-1) == theirs.argmax(axis=-1)))
        distance.append(np.abs(ours - theirs).mean())
        changed.append(np.mean(theirs.argmax(axis=-1) != y.argmax(axis=-1)))
    return float(np.mean(same)), float(np.mean(distance)), float(np.mean(changed))


def list_calls(
    y: Float[np.ndarray, "b h w k"], image: UInt8[np.ndarray, "b h w 3"], width: float
) -> dict[str, Callable[[], Any]]:
    """Returns the timed functions: whole calls and loops of both, then our parts."""
    places, colors = make_features(jnp.asarray(image[:1] / np.float32(255)))
    spatial = places / SPATIAL_WIDTH
    bilateral = jnp.concatenate([places / width, colors[0] / COLOR_WIDTH], axis=1)
    unary = log_clipped(jnp.asarray(y[:1]), LOWEST_PROBABILITY)
    widths = (SPATIAL_WIDTH, width, COLOR_WIDTH)
    condition = jax.jit(make_condition)(unary, image[:1] / np.float32(255), *widths)
    build = jax.jit(lambda features: build_lattice(features))
    apply = jax.jit(lambda lattice, values: filter_on_lattice(lattice, values))
    lattices = build(spatial), build(bilateral)
    values = jnp.asarray(y[0]).reshape(-1, y.shape[-1])

    @jax.jit
    def loop(y: Array, condition: Any) -> Array:
        return iterinf.refine(
            lambda y: update(y, condition, *WEIGHTS),
            y,
            step_size=1.0,
            num_iterations=NUM_ITERATIONS,
        ).y

    def infer(y, image):
        return iterinf.dense_crf(y, image, NUM_ITERATIONS, bilateral_width=width)

    peer = make_peer(y[0], image[0], width)
    return {
        "one image": lambda: infer(y[0], image[0]),
        "one image, pydensecrf2": lambda: infer_by_peer(y[0], image[0], width),
        "loop alone": lambda: loop(y[:1], condition),
        "loop alone, pydensecrf2": lambda: peer.inference(NUM_ITERATIONS),
        "batch of 4": lambda: infer(y, image),
        "batch of 4, pydensecrf2": lambda: [
            infer_by_peer(*pair, width) for pair in zip(y, image, strict=True)
        ],
        "spatial lattice": lambda: build(spatial),
        "bilateral lattice": lambda: build(bilateral),
        "spatial filter": lambda: apply(lattices[0], values),
        "bilateral filter": lambda: apply(lattices[1], values),
    }


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.FATAL)  # Orbax
    try:
        workdir = pathlib.Path(str(_WORKDIR.value))
        images, proposals = read_frames(_CONFIG.value, workdir, _FRAMES.value)
    except UserError as error:
        sys.exit(f"launch.benchmark_crf: {error}")
    print(
        f"{len(images)} frames of {images.shape[1]}x{images.shape[2]}; "
        f"{os.cpu_count()} CPU cores, of which pydensecrf2 uses one"
    )
    for width in BILATERAL_WIDTHS:
        same, distance, changed = compare(images, proposals, width)
        print(
            f"\nwidths {SPATIAL_WIDTH:g} and {width:g} / {COLOR_WIDTH:g}: "
            f"{100 * same:.4f}% of the labels are pydensecrf2's, mean |dQ| "
            f"{distance:.1e}; the CRF changes {100 * changed:.1f}% of y's\n"
        )
        print("| call | ms | ratio to pydensecrf2 |\n|---|---:|---:|")
        seconds = time_interleaved(
            list_calls(proposals[:4], images[:4], width), _REPEATS.value
        )
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        for name, time_taken in medians.items():
            peer = medians.get(f"{name}, pydensecrf2")
            ratio = f"{time_taken / peer:.2f}" if peer else ""
            print(f"| {name} | {1e3 * time_taken:.0f} | {ratio} |")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_run)
