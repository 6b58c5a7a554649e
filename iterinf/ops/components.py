"""Connected components of a label map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Integer


def count_components(
    labels: Integer[Array, "h w"], valid: Bool[Array, "h w"]
) -> Int[Array, ""]:
    """Counts the 4-connected regions of equal class among the valid pixels.

    Every pixel points to another pixel of its region, and finally to the first one. In
    each step the pointers of a region move to the smallest pointer among its pixels'
    neighbours, and then follow that pointer; the number of steps is logarithmic in the
    longest path in a region.

    Source: Zhang, Azad & Hu 2020, "FastSV: A Distributed-Memory Connected Component
      Algorithm with Fast Convergence".
    """
    height, width = labels.shape
    first = jnp.arange(height * width, dtype=jnp.int32)
    regions = jnp.where(valid, labels.astype(jnp.int32), -1)

    def move(state):
        pointers, ahead, _ = state
        least = _find_least_neighbor(ahead.reshape(height, width), regions).reshape(-1)
        moved = pointers.at[pointers].min(least)  # the root's, for all of its region
        moved = jnp.minimum(jnp.minimum(moved, least), ahead)
        moved_ahead = moved[moved]
        return moved, moved_ahead, jnp.any(moved_ahead != ahead)

    pointers, _, _ = jax.lax.while_loop(
        lambda state: state[2], move, (first, first, jnp.bool_(True))
    )
    return jnp.sum((pointers == first) & valid.reshape(-1), dtype=jnp.int32)


def _find_least_neighbor(
    values: Int[Array, "h w"], regions: Int[Array, "h w"]
) -> Int[Array, "h w"]:
    """Computes the minimum over each pixel and its 4-neighbours of the same class."""
    highest = jnp.iinfo(jnp.int32).max
    least = values
    for axis in (0, 1):
        size = values.shape[axis]
        low, high = (
            tuple(
                jax.lax.slice_in_dim(x, start, start + size - 1, axis=axis)
                for x in (values, regions)
            )
            for start in (0, 1)
        )
        same = low[1] == high[1]
        for value, widths in ((low[0], (1, 0)), (high[0], (0, 1))):
            padding = [(0, 0), (0, 0)]
            padding[axis] = widths
            offered = jnp.where(same, value, highest)
            padded = jnp.pad(offered, padding, constant_values=highest)
            least = jnp.minimum(least, padded)
    return least
