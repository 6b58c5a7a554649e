"""A segmenter that returns precomputed outputs of any other network."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_LOWEST_PROBABILITY = 1e-7


class Precomputed(nn.Module):
    """Returns the outputs that were read with the images; has no parameters.

    Attributes:
      num_classes: The number of classes.
      dtype: The dtype of the features; logits are float32.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32

    feature_offset = 0  # feature grids begin where the image does

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        *,
        probabilities: Float[Array, "b h w k"],
        **features: Float[Array, "b _ _ _"],
    ) -> tuple[Float[Array, "b h w k"], dict[str, Float[Array, "b _ _ _"]]]:
        """Returns log-probabilities as logits, and the features with the image."""
        y = probabilities.astype(jnp.float32)
        logits = jnp.log(jnp.maximum(y, _LOWEST_PROBABILITY))
        given = {name: h.astype(self.dtype) for name, h in features.items()}
        return logits, {"input": images, **given}
