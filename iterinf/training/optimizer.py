"""Optimizers of optax with a learning rate that falls after every epoch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from iterinf.errors import UserError


def create_optimizer(
    name: str,
    *,
    learning_rate: float,
    decay_per_epoch: float,
    steps_per_epoch: int,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> optax.GradientTransformation:
    """Creates an optimizer of optax whose learning rate falls after every epoch.

    rate = learning_rate * decay_per_epoch^epoch. The gradient of
    weight_decay * sum(w^2) over convolution kernels and normalisation scales,
    2 * weight_decay * w, is added to the gradient first.

    Args:
      name: Any optimizer of optax that takes a learning rate, e.g. "rmsprop".
      learning_rate: The rate in the first epoch.
      decay_per_epoch: The factor per epoch.
      steps_per_epoch: The number of optimizer steps in an epoch.
      weight_decay: The coefficient of the squared norm.
      options: The keyword arguments of the optimizer.

    Raises:
      UserError: If the name or an option is unknown.

    Source: paper, section 4.4.
    """
    rate = optax.exponential_decay(
        learning_rate, steps_per_epoch, decay_per_epoch, staircase=True
    )
    try:
        optimizer = getattr(optax, name)(rate, **options)
    except (AttributeError, TypeError) as error:
        raise UserError(f"optimizer {name!r} of optax: {error}") from error
    if weight_decay:
        penalty = optax.add_decayed_weights(2 * weight_decay, mask=_mask_weights)
        optimizer = optax.chain(penalty, optimizer)
    return optimizer


def _mask_weights(params: PyTree) -> PyTree[bool]:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "scale"), params
    )
