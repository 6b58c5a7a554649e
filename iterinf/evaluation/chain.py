"""The loop of a refiner, and chains of refiners: the second refines the first's y."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.inference import (
    Reconstruct,
    Step,
    Stopping,
    refine,
    start_stopping,
    stopping_step,
)
from iterinf.ops.logarithm import log_clipped
from iterinf.training.objectives import Networks, Variables, propose
from iterinf.types import Batch, Candidate, Refinement, Segmenter

_LOWEST_PROBABILITY = 1e-30


def start_loop(
    refiner: nn.Module, variables: Variables, candidate: Candidate, stop: float
) -> tuple[Reconstruct, Stopping, Step]:
    """Returns the reconstruction, initial state and step for `refine` or `sweep`.

    Args:
      refiner: The refiner.
      variables: The variables of the refiner.
      candidate: The initial prediction.
      stop: The tolerance of `stopping_step`; 0 never stops.
    """
    apply = partial(refiner.apply, variables)
    condition = apply(candidate, method=refiner.condition)
    return (
        lambda y: apply(y, condition, method=refiner.reconstruct),
        start_stopping(candidate.y, stop),
        partial(stopping_step, tolerance=stop),
    )


@dataclasses.dataclass(frozen=True)
class Loop:
    """A refiner with its chosen step size, number of iterations and `stop`."""

    refiner: nn.Module
    step_size: float
    num_iterations: int
    stop: float

    def refine(
        self,
        variables: Variables,
        candidate: Candidate,
        observe: Callable[[Array], Any] = lambda y: None,
    ) -> Refinement:
        """Iterates from the initial prediction; `observe` is a function of each y."""
        reconstruct, state, step = start_loop(
            self.refiner, variables, candidate, self.stop
        )
        refinement = refine(
            reconstruct,
            state,
            step_size=self.step_size,
            num_iterations=self.num_iterations,
            observe=lambda state: observe(state.y),
            step=step,
        )
        return refinement._replace(y=refinement.y.y)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A segmenter followed by a loop, with the interface of a segmenter."""

    segmenter: Segmenter
    loop: Loop

    def apply(
        self,
        variables: Networks,
        images: Float[Array, "b h w 3"],
        **outputs: Float[Array, "b _ _ _"],
    ) -> tuple[Float[Array, "b h w k"], dict[str, Float[Array, "b _ _ _"]]]:
        """Returns the logarithm of the refined y as logits, and the segmenter's h."""
        labels = jnp.zeros(images.shape[:3], jnp.int32)  # unused
        batch = Batch(images, labels, outputs)
        candidate = propose(self.segmenter, variables["segmenter"], batch)
        y = self.loop.refine(variables["refiner"], candidate).y
        return log_clipped(y, _LOWEST_PROBABILITY), candidate.features
