"""Population statistics of normalisation layers, estimated after training."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from iterinf.runtime.devices import collect, replicate_outputs
from iterinf.training.objectives import Variables
from iterinf.types import Batch

_COLLECTION = "statistics"


def estimate_statistics(
    segmenter: nn.Module,
    variables: Variables,
    batches: Iterator[Batch],
    num_batches: int,
) -> Variables:
    """Estimates the population mean and variance of every normalisation layer.

    From the means m_b and variances v_b of n training batches of one size,

      mean = sum_b m_b / n,   variance = sum_b (v_b + m_b^2) / n - mean^2

    For a layer whose inputs do not depend on the batch, these are the statistics of all
    pixels of all batches. Unlike moving averages, they belong to the final parameters,
    and training needs no state for them. Dropout is off, as at inference: it would add
    variance, which accumulates over layers.

    Args:
      segmenter: A segmenter with an attribute `dropout` that stores "mean" and "var" of
        its batch in the collection "statistics" if that is mutable.
      variables: The variables of the segmenter.
      batches: The training batches.
      num_batches: The number n of batches to read.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; for dropout
    Li et al. 2019, "Understanding the Disharmony between Dropout and Batch
    Normalization by Variance Shift".
    """
    without_dropout = segmenter.clone(dropout=0.0)

    @jax.jit
    def measure(variables: Variables, batch: Batch) -> Variables:
        _, left = without_dropout.apply(
            variables, batch.image, train=True, mutable=[_COLLECTION]
        )
        return replicate_outputs(left[_COLLECTION])

    found = collect(measure(variables, next(batches)) for _ in range(num_batches))
    stacked = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(found))
    by_path = flatten_dict(stacked)  # [n, ...], path of the layer with "mean" or "var"
    population = {}
    for (*layer, name), values in by_path.items():
        average = values.mean(axis=0, dtype=np.float64)
        if name == "var":
            average += by_path[*layer, "mean"].var(axis=0, dtype=np.float64)
        population[*layer, name] = jnp.float32(average)
    return unflatten_dict(population)
