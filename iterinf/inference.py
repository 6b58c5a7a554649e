"""Iterative inference: the loop of Eq. 6, with any reconstruction inside."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from iterinf.types import Refinement

Labelling = Float[Array, "*batch k"]
Reconstruct = Callable[[Labelling], Labelling]
Step = Callable[[Reconstruct, Any, Float[ArrayLike, ""]], Any]


def refine_step(
    reconstruct: Reconstruct, y: Labelling, step_size: Float[ArrayLike, ""]
) -> Labelling:
    """Moves y one damped step towards its reconstruction.

    y' = clip(y + step_size * (r(y) - y), 0, 1)                 (paper, Eq. 6)

    What the direction r(y) - y is depends on r:

      DAE(y_true): trained from the truth with Gaussian noise of a small sigma, it
        estimates sigma^2 times the score of the noisy truth (Eq. 1).
      DAE(y): trained from the segmenter's y, it estimates E[truth | y, h] - y, a
        correction of this segmenter's errors, which is the score of no density.
      dense CRF, CRF-RNN, context module: r is a mean-field update or a convolution; it
        has no score.

    For step sizes up to 1 the step mixes two distributions, so that y stays one and the
    clip does nothing.

    Args:
      reconstruct: r, maps y to the same shape; parameters and condition closed over.
      y: class probabilities, k last.
      step_size: dimensionless; 0 returns y, 1 returns r(y).

    Returns:
      The next y, in [0, 1].

    Raises:
      ValueError: if r changes the shape of y (while tracing).
    """
    reconstruction = reconstruct(y)
    if reconstruction.shape != y.shape:
        raise ValueError(
            f"reconstruct maps shape {y.shape} to {reconstruction.shape}; "
            "the loop needs the same shape"
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
      reconstruct: r, maps y to the same shape; parameters and condition closed over.
      y: where to start: the segmenter's class probabilities, or what `step` keeps
        beside them.
      step_size: of every step.
      num_iterations: number of steps; 0 returns y.
      observe: what to keep of each y, e.g. a confusion matrix; nothing by default.
      step: the update rule; variants wrap `refine_step`.

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
    """Refines from one y with every step size at once.

    The first reconstruction, of one y for all step sizes, is computed once.

    Args:
      reconstruct: any pure function of y that keeps its shape.
      y: where every run starts.
      step_sizes: s of them; a batch axis of one computation (`jax.vmap`).
      num_iterations: t.
      observe: what to keep of each y.
      step: see `refine`.

    Returns:
      Observations stacked [s, t, ...]: entry t is observe(y after t + 1 updates).
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
