"""Chains of refiners: the second starts from the result of the first."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.inference import refine, start_stopping, stopping_step
from iterinf.training.objectives import Networks, Variables, propose
from iterinf.types import Batch, Candidate, Refinement, Segmenter

_LOWEST_PROBABILITY = 1e-30


@dataclasses.dataclass(frozen=True)
class Loop:
    """A refiner with its chosen step size and number of iterations.

    Attributes:
      refiner: The refiner.
      step_size: The step size of Eq. 6.
      num_iterations: The number of iterations, at least 1.
      stop: The tolerance of `iterinf.inference.stopping_step`; 0 never stops.
    """

    refiner: nn.Module
    step_size: float
    num_iterations: int
    stop: float

    def refine(
        self, variables: Variables, candidate: Candidate, **options: Any
    ) -> Refinement:
        """Iterates from the initial prediction.

        Args:
          variables: The variables of the refiner.
          candidate: The initial prediction.
          **options: Options of `iterinf.refine`, e.g. `observe`, a function of y.
        """
        apply = functools.partial(self.refiner.apply, variables)
        condition = apply(candidate, method=self.refiner.condition)
        observe = options.pop("observe", lambda y: None)
        refinement = refine(
            lambda y: apply(y, condition, method=self.refiner.reconstruct),
            start_stopping(candidate.y, self.stop),
            step_size=self.step_size,
            num_iterations=self.num_iterations,
            observe=lambda state: observe(state.y),
            step=functools.partial(stopping_step, tolerance=self.stop),
            **options,
        )
        return refinement._replace(y=refinement.y.y)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A segmenter followed by a loop, with the interface of a segmenter.

    Attributes:
      segmenter: The segmenter, which computes y and h.
      loop: The loop that refines y.
    """

    segmenter: Segmenter
    loop: Loop

    def apply(
        self,
        variables: Networks,
        images: Float[Array, "b h w 3"],
        **outputs: Float[Array, "b _ _ _"],
    ) -> tuple[Float[Array, "b h w k"], dict[str, Float[Array, "b _ _ _"]]]:
        """Returns the logarithm of the refined y as logits, and the segmenter's h.

        Args:
          variables: The variables of "segmenter" and "refiner".
          images: The images, RGB in [0, 1].
          **outputs: Precomputed outputs for the segmenter.
        """
        labels = jnp.zeros(images.shape[:3], jnp.int32)  # unused
        batch = Batch(images, labels, outputs)
        candidate = propose(self.segmenter, variables["segmenter"], batch)
        y = self.loop.refine(variables["refiner"], candidate).y
        return jnp.log(jnp.clip(y, _LOWEST_PROBABILITY)), candidate.features
