"""Refiners: functions y -> r(y, condition) that improve a segmentation."""

from typing import Any

from iterinf.errors import UserError, check_known
from iterinf.refiners.context_module import ContextModule
from iterinf.refiners.crf_rnn import CRFRNN
from iterinf.refiners.dae import DAE
from iterinf.refiners.dense_crf import DenseCRF
from iterinf.refiners.refiner import Refiner

REFINERS: dict[str, type[Refiner]] = {
    "context_module": ContextModule,
    "crf_rnn": CRFRNN,
    "dae": DAE,
    "dense_crf": DenseCRF,
}


def create_refiner(name: str, *, num_classes: int, **options: Any) -> Refiner:
    """Creates a refiner.

    Args:
      name: A key of `REFINERS`.
      num_classes: The number of classes.
      **options: The attributes of the refiner, e.g. `feature_offset` (default 0).

    Returns:
      A Flax module, see `iterinf.refiners.refiner.Refiner`.

    Raises:
      UserError: If the name or an option is unknown.
    """
    check_known("refiner", name, REFINERS)
    try:
        return REFINERS[name](num_classes=num_classes, **options)
    except TypeError as error:
        raise UserError(f"refiner {name!r}: {error}") from error
