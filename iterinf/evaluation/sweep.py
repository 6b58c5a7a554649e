"""Refinement of a whole split with every step size, counted on the devices."""

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
from iterinf.evaluation.chain import start_loop
from iterinf.evaluation.tally import Spec, Tally, prepare_truth, tally_image
from iterinf.inference import Stopping, sweep
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
    """The tallies of a split."""

    initial: Tally  # [n], of the segmenter's y
    refined: Tally  # [n s t], after t + 1 steps with every step size


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
    """Refines every image with every step size, and counts after every iteration.

    One compiled program: batches by `lax.map`, iterations by `lax.scan`, step sizes by
    `vmap`. It is called once if the split fits into a quarter of a device's memory, or
    once per chunk that does. Batches are sharded over all devices.

    Args:
      segmenter: The segmenter.
      refiner: The refiner.
      networks: The variables of both.
      split: The whole split, with images in uint8; labels of k and above are void.
      step_sizes: The s step sizes.
      num_iterations: The number t of iterations.
      spec: The counts to compute.
      batch_size: The batch size; memory grows with batch_size * s. None: see
        `choose_batch_size`.
      stop: The tolerance of `iterinf.inference.stopping_step`; 0 never stops.
      count_stopped: Whether an image counts after it has stopped; False as released in
        2017, where late iterations are thus scored on hard images.
      title: The title of the progress bar; "" for none.

    Raises:
      UserError: If a y is not finite.
    """
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

    def join(*parts: np.ndarray) -> np.ndarray:
        whole = np.concatenate(parts)
        return whole.reshape(-1, *whole.shape[2:])[: len(split.label)]

    found = Counts(*jax.tree.map(join, *counts))
    for name, tally in (("segmenter", found.initial), ("refiner", found.refined)):
        if tally.confusion.min() < 0:
            raise UserError(
                f"the {name} gives probabilities that are not finite for images of "
                f"size {split.label.shape[1:]}; a kernel may be too narrow, or "
                "training failed"
            )
    return found


def choose_batch_size(lower: Callable[[Batch], Any], split: Batch) -> int:
    """Chooses a batch size for which a sweep fits into half of every device's memory.

    The memory is extrapolated from the compiled sweeps of one and two images per
    device. It is unknown on CPUs, where the batch size is 4.

    Args:
      lower: The function that lowers the sweep for the shapes of batches [n, b, ...].
      split: The whole split, in NumPy arrays.

    Returns:
      A power of two per device, at most 32 and at most the size of the split.
    """
    memory = read_memory()
    if memory is None:
        return _USUAL_BATCH
    num_devices = jax.device_count()

    def measure(part: int) -> int:
        def describe(x: np.ndarray) -> jax.ShapeDtypeStruct:
            shape = (1, part * num_devices, *x.shape[1:])
            sharding = create_sharding(shape[1], axis=1)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        with use_all_devices():
            compiled = lower(jax.tree.map(describe, split)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    first = measure(1)
    another = max(measure(2) - first, 1)
    fitting = 1 + (memory / 2 - first) / another
    part = min(fitting, _LARGEST_PART, math.ceil(len(split.label) / num_devices))
    return 2 ** math.floor(math.log2(max(part, 1))) * num_devices


def _choose_chunk(split: Batch, batch_size: int) -> int:
    """Chooses the number of batches per call, so that the split's part fits."""
    num_batches = math.ceil(len(split.label) / batch_size)
    memory = read_memory()
    if memory is None:
        return num_batches
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(split))
    return math.ceil(num_batches / math.ceil(num_bytes / (memory / 4)))


_open_bars: list[tqdm] = []


@contextlib.contextmanager
def _open_bar(title: str, total: int) -> Iterator[None]:
    """Opens the bar that `_advance_bar` moves, hidden if untitled.

    The compiled sweep calls that function: a bar of its own would be a new program.
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
    """Computes tallies [n b] of the initial, and [n b s t] of refined predictions."""

    def count_batch(batch: Batch):
        truth = jax.vmap(partial(prepare_truth, spec=spec))(batch.label)
        candidate = propose(segmenter, networks["segmenter"], to_unit_range(batch))
        reconstruct, initial, step = start_loop(
            refiner, networks["refiner"], candidate, stop
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

        refined = sweep(
            reconstruct,
            initial,
            step_sizes=step_sizes,
            num_iterations=num_iterations,
            observe=observe,
            step=step,
        )
        if report_progress:
            jax.debug.callback(_advance_bar, refined.confusion[0, 0, 0, 0, 0])
        return observe(initial), jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), refined)

    return replicate_outputs(jax.lax.map(count_batch, batches))
