"""The keys that a config must and may have."""

import difflib
from collections.abc import Mapping
from typing import Any

from iterinf.errors import UserError

_TOP = (
    "checkpoint_seconds dataset dtype evaluation export loader predict processes "
    "progress refiner refiners report seed segmenter trace_steps"
)
_EVALUATION = "batch_size boundary_tolerance num_resamples sweep_batch_size sweep_dtype"
_PHASE = (
    "batch_size crop_size ema_decay flip_probability jitter monitor num_epochs "
    "optimizer patience"
)
_OPTIMIZER = "decay_per_epoch learning_rate name options weight_decay"
_OBJECTIVE = (
    "cross_entropy num_iterations proposal_cross_entropy sigma squared_error start"
)
_SELECTION = (
    "count_stopped damped_step_sizes metric num_iterations parameters step_sizes stop"
)


def check_keys(settings: Mapping[str, Any]) -> None:
    """Checks that every key that is read is there, and no other one.

    Raises:
      UserError: If a key is unknown or missing.
    """
    _check(settings, "", _TOP)
    _check(settings["evaluation"], "evaluation.", _EVALUATION)
    segmenter = settings["segmenter"]
    optional = "class_weights fine_tuning init_from outputs training"
    _check(segmenter, "segmenter.", "model name title", optional)
    if "training" in segmenter:
        _check_phases(segmenter, "segmenter.")
    for name in settings["refiners"]:
        if name in settings["refiner"]:
            _check_refiner(settings["refiner"][name], f"refiner.{name}.")


def _check_refiner(refiner: Mapping[str, Any], prefix: str) -> None:
    trained = "end_to_end fine_tuning objective training"
    required = "model name selection title"
    if "training" in refiner:
        required += f" {trained}"
    _check(refiner, prefix, required, "follows")
    _check(refiner["selection"], f"{prefix}selection.", _SELECTION)
    if "training" in refiner:
        options = "constraint num_recycles recycle_step_size self_conditioning"
        _check(refiner["objective"], f"{prefix}objective.", _OBJECTIVE, options)
        _check_phases(refiner, prefix)


def _check_phases(network: Mapping[str, Any], prefix: str) -> None:
    _check(network, prefix, "fine_tuning training", " ".join(network))
    for phase in ("training", "fine_tuning"):
        _check(network[phase], f"{prefix}{phase}.", _PHASE, "inputs")
        optimizer = network[phase]["optimizer"]
        _check(optimizer, f"{prefix}{phase}.optimizer.", _OPTIMIZER)


def _check(
    group: Mapping[str, Any], prefix: str, required: str, optional: str = ""
) -> None:
    known = [*required.split(), *optional.split()]
    for key in group:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            advice = f"did you mean {close[0]}?" if close else f"known: {known}"
            raise UserError(f"config.{prefix}{key} is unknown; {advice}")
    for key in required.split():
        if key not in group:
            raise UserError(f"config.{prefix}{key} is missing")
