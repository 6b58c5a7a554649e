"""Training losses: sums over the labelled pixels and their number, never means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer


class LossSum(NamedTuple):
    """A loss as sum and count, so that padding and batching cannot bias its mean."""

    total: Float[Array, ""]  # summed over labelled pixels
    num_pixels: Float[Array, ""]  # labelled ones, by their weight

    @property
    def mean(self) -> Float[Array, ""]:
        """Mean per labelled pixel, by weight; 0 where there is none."""
        return self.total / jnp.where(self.num_pixels > 0, self.num_pixels, 1.0)


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
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    squared_error: float = 1.0,
    cross_entropy: float = 1.0,
) -> LossSum:
    """Computes the loss of a denoising autoencoder per labelled pixel.

    L = squared_error * sum_k (r_k - t_k)^2  -  cross_entropy * log r_label   (Eq. 5)

    with r = softmax(logits) and t the one-hot truth. Whatever the two weights, the
    minimiser over functions r of y~ is E[t | y~]: both terms are proper scores.

    Args:
      logits: of r(y~, h). They are read, rather than r, so that -log r_label keeps its
        gradient, 1 - r_label, where r_label underflows.
      labels: the truth; k and above are void and left out.
      squared_error: weight of the first term; 1/k makes it a mean over classes, as
        released in 2017; 0 leaves it out.
      cross_entropy: weight of the second term.

    Returns:
      Sum over labelled pixels and their number.
    """
    num_classes = logits.shape[-1]
    valid = labels < num_classes
    residual = jax.nn.softmax(logits) - encode_labels(labels, num_classes)
    squared = jnp.sum(jnp.square(residual), axis=-1)
    negative_log_likelihood = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(valid, labels, 0)
    )
    losses = squared_error * squared + cross_entropy * negative_log_likelihood
    return LossSum(jnp.sum(losses, where=valid), jnp.sum(valid, dtype=jnp.float32))
