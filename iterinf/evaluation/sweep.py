"""Step size and number of iterations, chosen on the validation split."""

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from iterinf.errors import UserError
from iterinf.evaluation.tally import Spec, Tally, prepare_truth, tally_image
from iterinf.inference import Stopping, start_stopping, stopping_step, sweep
from iterinf.runtime.bars import create_bar
from iterinf.runtime.devices import (
    create_sharding,
    read_memory,
    replicate_outputs,
    shard,
    use_all_devices,
)
from iterinf.training.objectives import Networks, propose, to_unit_range
from iterinf.training.validation import batch_split
from iterinf.types import Batch, Segmenter

_USUAL_BATCH = 4
_LARGEST_PART = 32  # images on a device: more keep it no busier


class Counts(NamedTuple):
    """What is counted of every image."""

    initial: Tally  # [n], of the segmenter's y
    refined: Tally  # [n s t], after t + 1 steps of every step size


def count_refinements(
    segmenter: Segmenter,
    refiner: nn.Module,
    networks: Networks,
    split: Batch,
    *,
    step_sizes: Sequence[float],
    num_iterations: int,
    spec: Spec,
    batch_size: int | None,
    stop: float = 0.0,
    count_stopped: bool = True,
    title: str = "",
) -> Counts:
    """Refines every image with every step size; counts after every iteration.

    One compiled program: batches by `lax.map`, iterations by `lax.scan`, step sizes by
    `vmap`, counts on the device. The contribution of h is computed once per image. Each
    batch is cut over the devices, if there are several. One call of it, if the split
    fits into a quarter of a device's memory; else a call for each chunk that does.

    Args:
      segmenter: proposes y and h.
      refiner: reconstructs.
      networks: variables of both.
      split: a whole one, images in uint8; labels of k and above are void.
      step_sizes: s of them.
      num_iterations: t.
      spec: what is counted.
      batch_size: images at a time; memory grows with batch_size * s. None: as many as
        fit, see `choose_batch_size`.
      stop: tolerance of `iterinf.inference.stopping_step`; 0: no image stops.
      count_stopped: whether an image counts from the iteration on in which it stops;
        False as released in 2017: late iterations are then scored on hard images.
      title: of the progress bar; empty for none.

    Returns:
      Integer counts of every image.

    Raises:
      UserError: if a y is not finite.
    """
    num_images = len(split.label)
    others = (
        segmenter,
        refiner,
        num_iterations,
        spec,
        stop,
        count_stopped,
        bool(title),
        networks,
        jnp.asarray(step_sizes, jnp.float32),
    )
    if batch_size is None:
        batch_size = choose_batch_size(partial(_count_batches.lower, *others), split)
    length = _choose_chunk(split, batch_size)
    batches = batch_split(split, batch_size, void=spec.num_classes, multiple=length)
    counts = []
    with _open_bar(title, len(batches.label)):
        for i in range(0, len(batches.label), length):
            chunk = jax.tree.map(operator.itemgetter(slice(i, i + length)), batches)
            chunk = shard(chunk, axis=1)
            with use_all_devices():
                counts.append(jax.device_get(_count_batches(*others, chunk)))
    initial, refined = jax.tree.map(
        lambda *parts: np.concatenate(parts).reshape(-1, *parts[0].shape[2:])[
            :num_images
        ],
        *counts,
    )
    lowest = [tally.confusion.min() for tally in (initial, refined)]
    if min(lowest) < 0:
        whose = "the segmenter" if lowest[0] < 0 else "the refiner"
        raise UserError(
            f"{whose} gives probabilities that are not finite, at sizes of image "
            f"{split.label.shape[1:]}; a kernel may be too narrow, or training failed"
        )
    return Counts(initial, refined)


def choose_batch_size(lower: Callable[[Batch], Any], split: Batch) -> int:
    """As many images at a time as half of every device's memory has room for.

    The compiled sweep says what it needs for one image on every device and for two;
    each image more is taken to need as much as the second.

    Args:
      lower: lowers the sweep for the shapes of batches [n, b, ...].
      split: a whole one, in NumPy arrays.

    Returns:
      A power of two for every device, at most 32, nor more than the split has; 4 in all
      where the memory is not known, as on CPUs.
    """
    memory = read_memory()
    if memory is None:
        return _USUAL_BATCH
    num_devices = jax.device_count()

    def measure(part: int) -> int:
        batch_size = part * num_devices
        sharding = create_sharding(batch_size, axis=1)

        def describe(x: np.ndarray) -> jax.ShapeDtypeStruct:
            shape = (1, batch_size, *x.shape[1:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        shapes = jax.tree.map(describe, split)
        with use_all_devices():
            return lower(shapes).compile().memory_analysis().temp_size_in_bytes

    first = measure(1)
    another = max(measure(2) - first, 1)
    fitting = 1 + (memory / 2 - first) / another
    part = min(fitting, _LARGEST_PART, math.ceil(len(split.label) / num_devices))
    return 2 ** math.floor(math.log2(max(part, 1))) * num_devices


def _choose_chunk(split: Batch, batch_size: int) -> int:
    """Number of batches, as many in every call as the others, that fit."""
    num_batches = math.ceil(len(split.label) / batch_size)
    memory = read_memory()
    if memory is None:
        return num_batches
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(split))
    return math.ceil(num_batches / math.ceil(num_bytes / (memory / 4)))


_open_bars: list[tqdm] = []


@contextlib.contextmanager
def _open_bar(title: str, total: int) -> Iterator[None]:
    """Shows a bar, unless untitled, that `_advance_bar` moves.

    The compiled sweep calls that one function, whatever bar is open: a bar of its own
    would be a new program for every sweep.
    """
    with create_bar(title, total, "batch", show=bool(title)) as bar:
        _open_bars.append(bar)
        try:
            yield
        finally:
            jax.effects_barrier()
            _open_bars.remove(bar)


def _advance_bar(_: Array) -> None:
    _open_bars[-1].update()


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5, 6))
def _count_batches(
    segmenter: Segmenter,
    refiner: nn.Module,
    num_iterations: int,
    spec: Spec,
    stop: float,
    count_stopped: bool,
    report_progress: bool,
    networks: Networks,
    step_sizes: Float[Array, " s"],
    batches: Batch,
) -> tuple[Tally, Tally]:
    """Counts [n b ...] before, and [n b s t ...] in all refinements."""

    def count_batch(batch: Batch):
        truth = jax.vmap(partial(prepare_truth, spec=spec))(batch.label)
        candidate = propose(segmenter, networks["segmenter"], to_unit_range(batch))
        condition = refiner.apply(
            networks["refiner"], candidate, method=refiner.condition
        )

        def reconstruct(y):
            return refiner.apply(
                networks["refiner"], y, condition, method=refiner.reconstruct
            )

        def observe(state: Stopping) -> Tally:
            tally = jax.vmap(partial(tally_image, spec=spec))(truth, state.y)
            counts, boundary_f1 = tally.confusion, tally.boundary_f1
            if state.moving is not None and not count_stopped:
                counts = jnp.where(state.moving[:, None, None], counts, 0)
                boundary_f1 = jnp.where(state.moving, boundary_f1, jnp.nan)
            is_bad = jnp.any(jnp.isnan(state.y), axis=(1, 2, 3))
            counts = jnp.where(is_bad[:, None, None], -1, counts)
            return tally._replace(confusion=counts, boundary_f1=boundary_f1)

        initial = start_stopping(candidate.y, stop)
        refined = sweep(
            reconstruct,
            initial,
            step_sizes=step_sizes,
            num_iterations=num_iterations,
            observe=observe,
            step=partial(stopping_step, tolerance=stop),
        )
        if report_progress:
            jax.debug.callback(_advance_bar, refined.confusion[0, 0, 0, 0, 0])
        return observe(initial), jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), refined)

    return replicate_outputs(jax.lax.map(count_batch, batches))
