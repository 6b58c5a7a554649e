"""The base class of refiners."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iterinf.types import Candidate


class Refiner(nn.Module):
    """A function r(y, condition) that maps class probabilities to class probabilities.

    Subclasses implement `condition`, which is computed once per image, and
    `compute_logits`, which is computed in every iteration:

      r(y, condition) = softmax(compute_logits(y, condition))

    Losses read the logits, since the logarithm of a probability that has underflowed
    has no gradient. A refiner that is never trained may override `reconstruct` instead
    of `compute_logits`.

    Attributes:
      num_classes: The number of classes.
      feature_offset: The number of pixels by which the segmenter's feature grids begin
        before the image.
      dtype: The dtype of the computation; parameters, logits and probabilities are
        float32.
    """

    num_classes: int
    feature_offset: int = 0
    dtype: DTypeLike = jnp.float32

    def __call__(self, candidate: Candidate) -> Float[Array, "b h w k"]:
        """Computes one reconstruction of the initial prediction."""
        return self.reconstruct(candidate.y, self.condition(candidate))

    def condition(self, candidate: Candidate) -> Any:
        """Computes everything that does not depend on y, a pytree of arrays."""
        raise NotImplementedError

    def compute_logits(
        self, y: Float[Array, "b h w k"], condition: Any
    ) -> Float[Array, "b h w k"]:
        """Computes the logits of r(y, condition).

        Args:
          y: The class probabilities; any real values if noisy.
          condition: The result of `condition` for the same images.

        Returns:
          The logits, float32.
        """
        raise NotImplementedError

    def reconstruct(
        self, y: Float[Array, "b h w k"], condition: Any
    ) -> Float[Array, "b h w k"]:
        """Computes r(y, condition), the softmax of `compute_logits`."""
        return nn.softmax(self.compute_logits(y, condition))
