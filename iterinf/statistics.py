"""Statistics of normalisation, estimated when training is over."""

from collections.abc import Iterator

import flax.linen as nn
import jax

from iterinf.devices import gather
from iterinf.objectives import Variables
from iterinf.types import Batch

_COLLECTION = "statistics"


def estimate_statistics(
    segmenter: nn.Module,
    variables: Variables,
    batches: Iterator[Batch],
    num_batches: int,
) -> Variables:
    """Means, over training batches, of what each batch is normalised by.

    Unlike a moving average kept while the parameters still change, it belongs to the
    final ones, and training needs no state for it. Dropout is off, as when they are
    used: it widens the maps, and a network of many layers cannot bear the difference.

    Args:
      segmenter: has a `dropout`, and leaves its batch's statistics in the collection
        "statistics" where that is mutable.
      variables: of the segmenter.
      batches: of training.
      num_batches: how many of them count.

    Returns:
      The collection, for the variables.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; for dropout
    Li et al. 2019, "Understanding the Disharmony between Dropout and Batch
    Normalization by Variance Shift".
    """
    without_dropout = segmenter.clone(dropout=0.0)

    @jax.jit
    def collect(variables: Variables, batch: Batch) -> Variables:
        _, left = without_dropout.apply(
            variables, batch.image, train=True, mutable=[_COLLECTION]
        )
        return gather(left[_COLLECTION])

    found = [collect(variables, next(batches)) for _ in range(num_batches)]
    return jax.tree.map(lambda *leaves: sum(leaves) / num_batches, *found)
