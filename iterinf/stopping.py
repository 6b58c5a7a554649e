"""Stopping each image by itself: a state and a step for `iterinf.inference`."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from iterinf.inference import Reconstruct, refine_step


class Stopping(NamedTuple):
    """Labellings, some of which may have stopped."""

    y: Float[Array, "b h w k"]
    moving: Bool[Array, " b"] | None  # None: none ever stops


def start(y: Float[Array, "b h w k"], tolerance: float) -> Stopping:
    """All images move, for good if the tolerance is 0."""
    return Stopping(y, jnp.ones(y.shape[:1], bool) if tolerance else None)


def stopping_step(
    reconstruct: Reconstruct,
    state: Stopping,
    step_size: Float[ArrayLike, ""],
    *,
    tolerance: float,
) -> Stopping:
    """Moves the images that have not stopped, then stops those that are near r(y).

    An image stops after the step at whose start

        mean over pixels of ||y - r(y)||_2  <  tolerance.

    Args:
      reconstruct: r, see `iterinf.inference.refine_step`.
      state: from `start`, or from this function.
      step_size: of Eq. 6.
      tolerance: .001 in the code released in 2017.

    Returns:
      The state after the step; images that stop in it have made it.
    """
    if state.moving is None:
        return state._replace(y=refine_step(reconstruct, state.y, step_size))
    reconstruction = reconstruct(state.y)
    moved = refine_step(lambda _: reconstruction, state.y, step_size)
    distance = jnp.linalg.norm(state.y - reconstruction, axis=-1).mean(axis=(1, 2))
    return Stopping(
        jnp.where(state.moving[:, None, None, None], moved, state.y),
        state.moving & ~(distance < tolerance),  # nan goes on, to be seen
    )
