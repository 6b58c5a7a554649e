"""Iterative inference: the loop of Eq. 6, with any reconstruction inside."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Shaped

from iterinf.types import Refinement

Segmentation = Float[Array, "*batch k"]
Reconstruct = Callable[[Segmentation], Segmentation]
Step = Callable[[Reconstruct, Any, Float[ArrayLike, ""]], Any]


def refine_step(
    reconstruct: Reconstruct, y: Segmentation, step_size: Float[ArrayLike, ""]
) -> Segmentation:
    """Moves y one damped step towards its reconstruction.

    y' = clip(y + step_size * (r(y) - y), 0, 1)                 (paper, Eq. 6)

    The meaning of the direction r(y) - y depends on r:

      DAE(y_true): trained from the truth with Gaussian noise of a small sigma, it
        estimates sigma^2 times the score of the noisy truth (Eq. 1).
      DAE(y): trained from the segmenter's y, it estimates E[truth | y, h] - y, a
        correction of this segmenter's errors, which is the score of no density.
      dense CRF, CRF-RNN, context module: r is a mean-field update or a convolution,
        which is not related to a score.

    For step sizes up to 1 the step is a convex combination of two distributions, so
    that y remains a distribution and the clip has no effect.

    Args:
      reconstruct: The function r, which maps y to the same shape; parameters and
        condition are closed over.
      y: The class probabilities, k last.
      step_size: The step size; 0 returns y, 1 returns r(y).

    Returns:
      The next y, in [0, 1].

    Raises:
      ValueError: If r changes the shape of y (while tracing).
    """
    reconstruction = reconstruct(y)
    if reconstruction.shape != y.shape:
        raise ValueError(
            f"reconstruct maps shape {y.shape} to {reconstruction.shape}, "
            "expected the same shape"
        )
    step_size = jnp.asarray(step_size, y.dtype)
    return jnp.clip(y + step_size * (reconstruction - y), 0.0, 1.0)


def refine(
    reconstruct: Reconstruct,
    y: PyTree[Shaped[Array, "..."]],
    *,
    step_size: Float[ArrayLike, ""],
    num_iterations: int,
    observe: Callable[[Any], PyTree] = lambda y: None,
    step: Step = refine_step,
) -> Refinement:
    """Iterates `step` from y.

    Args:
      reconstruct: The function r, which maps y to the same shape; parameters and
        condition are closed over.
      y: The initial class probabilities, or the initial state of `step`.
      step_size: The step size of every step.
      num_iterations: The number of steps; 0 returns y.
      observe: A function of each y whose values are returned, e.g. a confusion matrix.
      step: The update rule; variants wrap `refine_step`.

    Returns:
      The last y, and the observations after each step, stacked on a leading axis t.
    """

    def update(y, _):
        y = step(reconstruct, y, step_size)
        return y, observe(y)

    return Refinement(*jax.lax.scan(update, y, length=num_iterations))


def sweep(
    reconstruct: Reconstruct,
    y: PyTree[Shaped[Array, "..."]],
    *,
    step_sizes: Sequence[float] | Float[ArrayLike, " s"],
    num_iterations: int,
    observe: Callable[[Any], PyTree],
    step: Step = refine_step,
) -> PyTree[Shaped[Array, "s t ..."]]:
    """Refines one y with every step size at once.

    The first reconstruction, which does not depend on the step size, is computed once.

    Args:
      reconstruct: The pure function r; see `refine` for it and the others.
      y: The initial class probabilities, or the initial state of `step`.
      step_sizes: The s step sizes, a batch axis of one computation (`jax.vmap`).
      num_iterations: The number t of steps.
      observe: A function of each y whose values are returned.
      step: The update rule.

    Returns:
      The observations [s, t, ...]; index t holds observe(y after t + 1 updates).
    """

    def run(step_size):
        moved = step(reconstruct, y, step_size)  # r(y) has no axis of step sizes
        first = jax.tree.map(lambda x: x[None], observe(moved))
        if num_iterations < 2:
            return jax.tree.map(lambda x: x[:num_iterations], first)
        rest = refine(
            reconstruct,
            moved,
            step_size=step_size,
            num_iterations=num_iterations - 1,
            observe=observe,
            step=step,
        ).observations
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, rest)

    return jax.vmap(run)(jnp.asarray(step_sizes, jnp.float32))


class Stopping(NamedTuple):
    """The state of `stopping_step`."""

    y: Float[Array, "b h w k"]
    moving: Bool[Array, " b"] | None  # None: none ever stops


def start_stopping(y: Float[Array, "b h w k"], tolerance: float) -> Stopping:
    """Creates the initial state; with a tolerance of 0 no image ever stops."""
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

        mean over pixels of ||y - r(y)||_2  <  tolerance,

    .001 in the code released in 2017; this step is its last.
    """
    if state.moving is None:
        return state._replace(y=refine_step(reconstruct, state.y, step_size))
    reconstruction = reconstruct(state.y)
    moved = refine_step(lambda _: reconstruction, state.y, step_size)
    distance = jnp.linalg.norm(state.y - reconstruction, axis=-1).mean(axis=(1, 2))
    return Stopping(
        jnp.where(state.moving[:, None, None, None], moved, state.y),
        state.moving & ~(distance < tolerance),  # nan does not stop, so it is detected
    )
