"""Segmentation networks, which map images to logits and features."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn

from iterinf.errors import UserError, check_known
from iterinf.segmenters.fc_densenet import FCDenseNet
from iterinf.segmenters.fcn8 import FCN8
from iterinf.segmenters.precomputed import Precomputed

SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "fcn8": FCN8,
    "fc_densenet56": partial(
        FCDenseNet, blocks=(4, 4, 4, 4, 4), bottleneck=4, growth_rate=12
    ),
    "fc_densenet67": partial(FCDenseNet, blocks=(5, 5, 5, 5, 5), bottleneck=5),
    "fc_densenet103": FCDenseNet,
    "precomputed": Precomputed,
}


def create_segmenter(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Creates a segmentation network.

    Args:
      name: A key of `SEGMENTERS`.
      num_classes: The number of classes.
      **options: The attributes of the network.

    Returns:
      A Flax module with `apply(variables, images) -> (logits, features)` and an
      attribute `feature_offset` (the number of pixels by which its feature grids begin
      before the image). "precomputed" also takes the `outputs` of a batch, by name.

    Raises:
      UserError: If the name or an option is unknown.
    """
    check_known("segmenter", name, SEGMENTERS)
    try:
        return SEGMENTERS[name](num_classes=num_classes, **options)
    except TypeError as error:
        raise UserError(f"segmenter {name!r}: {error}") from error
