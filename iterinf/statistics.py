"""Statistics of normalisation, estimated when training is over."""

from collections.abc import Iterator

import flax.linen as nn
import jax
from jaxtyping import Array, Key

from iterinf.objectives import Variables
from iterinf.types import Batch

_COLLECTION = "statistics"


def estimate_statistics(
    segmenter: nn.Module,
    variables: Variables,
    batches: Iterator[Batch],
    num_batches: int,
    key: Key[Array, ""],
) -> Variables:
    """Means, over training batches, of what each batch is normalised by.

    Unlike a moving average kept while the parameters still change, it belongs to the
    final ones, and training needs no state for it.

    Args:
      segmenter: leaves its batch's statistics in the collection "statistics" where
        that is mutable.
      variables: of the segmenter.
      batches: of training.
      num_batches: how many of them count.
      key: of dropout, which is on as in training.

    Returns:
      The collection, for the variables.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.
    """

    @jax.jit
    def collect(variables: Variables, batch: Batch, key: Key[Array, ""]) -> Variables:
        _, left = segmenter.apply(
            variables,
            batch.image,
            train=True,
            rngs={"dropout": key},
            mutable=[_COLLECTION],
        )
        return left[_COLLECTION]

    keys = jax.random.split(key, num_batches)
    found = [collect(variables, next(batches), k) for k in keys]
    return jax.tree.map(lambda *leaves: sum(leaves) / num_batches, *found)
