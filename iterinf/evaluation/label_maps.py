"""Label maps of images before and after refinement."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from iterinf.evaluation.chain import start_loop
from iterinf.evaluation.tally import Spec, Tally, prepare_truth, tally_image
from iterinf.inference import Stopping, sweep
from iterinf.runtime.devices import collect, replicate_outputs
from iterinf.training.objectives import Networks, Variables, propose, to_unit_range
from iterinf.training.validation import shard_batches
from iterinf.types import Batch, Candidate, Segmenter


@partial(jax.jit, static_argnums=0)
def segment(
    segmenter: nn.Module, variables: Variables, batch: Batch
) -> Int[Array, "b h w"]:
    """Computes the label maps of a segmenter from images in uint8."""
    y = propose(segmenter, variables, to_unit_range(batch)).y
    return replicate_outputs(jnp.argmax(y, axis=-1))


def count_predictions(
    segmenter: nn.Module,
    variables: Variables,
    split: Batch,
    *,
    spec: Spec,
    batch_size: int,
) -> Tally:
    """Computes the tally [n] of a segmenter on a whole split, with images in uint8."""

    @jax.jit
    def count(label, y):
        truth = jax.vmap(partial(prepare_truth, spec=spec))(label)
        return replicate_outputs(jax.vmap(partial(tally_image, spec=spec))(truth, y))

    parts = collect(
        count(batch.label, _propose(segmenter, variables, batch).y)
        for batch in shard_batches(split, batch_size, void=spec.num_classes)
    )
    counts = jax.device_get(parts)
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(split.label)], *counts)


def refine_labels(
    segmenter: Segmenter,
    refiner: nn.Module,
    networks: Networks,
    batch: Batch,
    *,
    step_sizes: Float[Array, " s"],
    num_iterations: int,
    stop: float = 0.0,
) -> UInt8[Array, "b s p h w"]:
    """Computes the label maps after 0..t iterations, p = t + 1.

    Args:
      segmenter: The segmenter, compiled once for all its refiners.
      refiner: The refiner.
      networks: The variables of both.
      batch: The batch, with images in uint8.
      step_sizes: The s step sizes of Eq. 6; memory grows with b * s.
      num_iterations: The number t of iterations.
      stop: The tolerance of `iterinf.inference.stopping_step`; 0 never stops.
    """
    candidate = _propose(segmenter, networks["segmenter"], batch)
    variables = networks["refiner"]
    return _refine_labels(
        refiner, num_iterations, stop, variables, candidate, step_sizes
    )


@partial(jax.jit, static_argnums=0)
def _propose(segmenter: Segmenter, variables: Variables, batch: Batch) -> Candidate:
    return propose(segmenter, variables, to_unit_range(batch))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _refine_labels(
    refiner: nn.Module,
    num_iterations: int,
    stop: float,
    variables: Variables,
    candidate: Candidate,
    step_sizes: Float[Array, " s"],
) -> UInt8[Array, "b s p h w"]:
    def observe(state: Stopping) -> UInt8[Array, "b h w"]:
        return jnp.argmax(state.y, axis=-1).astype(jnp.uint8)

    reconstruct, initial, step = start_loop(refiner, variables, candidate, stop)
    refined = sweep(
        reconstruct,
        initial,
        step_sizes=step_sizes,
        num_iterations=num_iterations,
        observe=observe,
        step=step,
    )  # s t b h w
    before = jnp.broadcast_to(observe(initial), (len(refined), 1, *refined.shape[2:]))
    maps = jnp.concatenate([before, refined], axis=1)
    return replicate_outputs(jnp.moveaxis(maps, 2, 0))
