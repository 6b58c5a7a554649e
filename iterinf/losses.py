"""Training losses: sums over the labelled pixels and their number, never means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

_TINY = 1e-30  # keeps log finite where softmax underflows; its gradient stays exact


class LossSum(NamedTuple):
    """A loss as sum and count, so that padding and batching cannot bias its mean."""

    total: Float[Array, ""]  # summed over labelled pixels
    num_pixels: Float[Array, ""]  # labelled ones, by their weight

    @property
    def mean(self) -> Float[Array, ""]:
        """Per labelled pixel; 0 where there is none."""
        return self.total / jnp.maximum(self.num_pixels, 1.0)


def encode_labels(labels: Integer[Array, "b h w"], num_classes: int) -> Array:
    """One-hot labels [b h w k] in float32; void pixels are all zeros."""
    return jax.nn.one_hot(labels, num_classes)


def compute_cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    class_weights: Float[Array, " k"] | None = None,
) -> LossSum:
    """Cross-entropy of a segmenter, -w[label] log softmax(logits)[label].

    Args:
      logits: scores.
      labels: the truth; k and above are void and left out.
      class_weights: w; None: all one.

    Returns:
      Sum over labelled pixels, and the sum of their weights.
    """
    num_classes = logits.shape[-1]
    valid = labels < num_classes
    labels = jnp.where(valid, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    weights = jnp.ones(labels.shape)
    if class_weights is not None:
        weights = class_weights[labels]
        losses = weights * losses
    return LossSum(jnp.sum(losses, where=valid), jnp.sum(weights, where=valid))


def compute_reconstruction_loss(
    reconstruction: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    squared_error: float = 1.0,
    cross_entropy: float = 1.0,
) -> LossSum:
    """The loss of a denoising autoencoder, per labelled pixel.

    L = squared_error * sum_k (r_k - t_k)^2  -  cross_entropy * log r_label   (Eq. 5)

    Args:
      reconstruction: r(y, h), class probabilities.
      labels: the truth; k and above are void and left out.
      squared_error: weight of the first term; 1/k makes it a mean over classes, as
        released in 2017; 0 leaves it out.
      cross_entropy: weight of the second term.

    Returns:
      Sum over labelled pixels and their number.
    """
    truth = encode_labels(labels, reconstruction.shape[-1])
    valid = labels < reconstruction.shape[-1]
    squared = jnp.sum(jnp.square(reconstruction - truth), axis=-1)
    log_likelihood = jnp.log(jnp.sum(reconstruction * truth, axis=-1) + _TINY)
    losses = squared_error * squared - cross_entropy * log_likelihood
    return LossSum(jnp.sum(losses, where=valid), jnp.sum(valid, dtype=jnp.float32))
