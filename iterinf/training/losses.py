"""Training losses as sums over labelled pixels and pixel counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer


class LossSum(NamedTuple):
    """A loss as sum and count, so that padding and batching cannot bias its mean."""

    total: Float[Array, ""]  # summed over labelled pixels
    num_pixels: Float[Array, ""]  # labelled pixels, weighted

    @property
    def mean(self) -> Float[Array, ""]:
        """The weighted mean per labelled pixel; 0 if there are none."""
        return self.total / jnp.where(self.num_pixels > 0, self.num_pixels, 1.0)


def compute_cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    class_weights: Float[Array, " k"] | None = None,
) -> LossSum:
    """Computes the cross-entropy -w[label] log softmax(logits)[label].

    Labels of k and above are void and ignored. Without class weights w, all are 1.
    """
    valid = labels < logits.shape[-1]
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

    with r = softmax(logits) and t the one-hot truth. For any two weights the minimiser
    over functions r of y~ is E[t | y~], since both terms are proper scoring rules.

    Args:
      logits: The logits of r(y~, h); unlike r, they give the gradient 1 - r_label of
        -log r_label where r_label underflows.
      labels: The labels; k and above are void and ignored.
      squared_error: The weight of the first term; 1/k makes it a mean over classes, as
        released in 2017.
      cross_entropy: The weight of the second term.
    """
    num_classes = logits.shape[-1]
    valid = labels < num_classes
    residual = jax.nn.softmax(logits) - jax.nn.one_hot(labels, num_classes)
    squared = jnp.sum(jnp.square(residual), axis=-1)
    negative_log_likelihood = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(valid, labels, 0)
    )
    losses = squared_error * squared + cross_entropy * negative_log_likelihood
    return LossSum(jnp.sum(losses, where=valid), jnp.sum(valid, dtype=jnp.float32))
