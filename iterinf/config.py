"""Config validation, and the keys that may change once results exist.

Configs are plain nested dicts here, as in config.json; `list_trained` also takes a
ConfigDict.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from iterinf.config_keys import check_keys
from iterinf.errors import UserError
from iterinf.types import METRICS, MONITORS

# Options of later versions, or removed ones: the value that a config without them has.
IMPLIED = {
    "anchored": False,
    "feature_dropout": 0.0,
    "full_size_skip": False,
    "inputs": "crops",
    "learn_widths": False,
    "metric": "mean_iou",
    "num_recycles": 0,
    "reads_y": True,
    "recycle_step_size": 0.5,
    "self_conditioning": 0.0,
    "unpool_fill": 0.0,
}
UNBOUND = (  # affect no result, so they may change in a workdir that has results
    "refiners",
    "progress",
    "checkpoint_seconds",
    "trace_steps",
    "loader",
    "processes",
    "predict",
    "export",
    "evaluation.num_resamples",
    "report",
    "dataset.options.path",
    "dataset.options.source",
    "dataset.options.data_dir",
    "dataset.options.cache",
    "segmenter.title",
    "segmenter.outputs",
)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _are_numbers(value: Any) -> bool:
    """Whether this is a number or a nonempty list of numbers."""
    return value != [] and all(map(_is_number, _to_list(value)))


def _are_positive(value: Any) -> bool:
    return _are_numbers(value) and min(_to_list(value)) > 0


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(_is_integer(length) and length >= 1 for length in value)


# float16 is for inference only: without loss scaling its gradients underflow.
_TRAINING_DTYPES = ("float32", "bfloat16")
_DTYPES = (*_TRAINING_DTYPES, "float16")

# What is expected, whether a value x is that, and the last parts of the keys.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "an integer >= 1",
        lambda x: _is_integer(x) and x >= 1,
        "batch_size num_epochs num_iterations num_resamples patience",
    ),
    (
        "an integer >= 1 or None",
        lambda x: x is None or _is_integer(x) and x >= 1,
        "sweep_batch_size",
    ),
    (
        "an integer >= 0",
        lambda x: _is_integer(x) and x >= 0,
        "num_recycles trace_steps num_images num_threads",
    ),
    ("an integer in [0, 2^32)", lambda x: _is_integer(x) and 0 <= x < 2**32, "seed"),
    (
        "a number >= 0",
        lambda x: _is_number(x) and x >= 0,
        "learning_rate weight_decay sigma jitter stop checkpoint_seconds "
        "squared_error cross_entropy proposal_cross_entropy switch_noise",
    ),
    (
        "a number in (0, 1]",
        lambda x: _is_number(x) and 0 < x <= 1,
        "decay_per_epoch recycle_step_size",
    ),
    (
        "a number in [0, 1)",
        lambda x: _is_number(x) and 0 <= x < 1,
        "ema_decay dropout",
    ),
    (
        "a number in [0, 1]",
        lambda x: _is_number(x) and 0 <= x <= 1,
        "flip_probability self_conditioning unpool_fill",
    ),
    (
        "a number in [0, 0.05]",
        lambda x: _is_number(x) and 0 <= x <= 0.05,
        "boundary_tolerance",
    ),
    (
        "a nonempty list of numbers > 0",
        lambda x: isinstance(x, list) and _are_positive(x),
        "step_sizes",
    ),
    (
        "a list of numbers > 0",
        lambda x: x == [] or isinstance(x, list) and _are_positive(x),
        "damped_step_sizes",
    ),
    ("numbers > 0", _are_positive, "spatial_width bilateral_width"),
    (
        "numbers >= 1 (of 255 levels)",
        lambda x: _are_numbers(x) and min(_to_list(x)) >= 1,
        "color_width",
    ),
    ("(height, width) or None", lambda x: x is None or _is_size(x), "crop_size"),
    (f"one of {_TRAINING_DTYPES}", lambda x: x in _TRAINING_DTYPES, "dtype"),
    (f"None or one of {_DTYPES}", lambda x: x in (None, *_DTYPES), "sweep_dtype"),
    (f"one of {MONITORS}", lambda x: x in MONITORS, "monitor"),
    (f"one of {METRICS}", lambda x: x in METRICS, "metric"),
    (
        "'none' or 'median_frequency'",
        lambda x: x in ("none", "median_frequency"),
        "class_weights",
    ),
)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks the config values that are not checked elsewhere.

    Raises:
      UserError: If a value is invalid; names the first such key.
    """
    check_keys(settings)
    for key, value in flatten(settings).items():
        if key.endswith("fine_tuning.num_epochs") and value == 0:
            continue  # no such phase
        is_grid = isinstance(value, list) and _are_numbers(value)
        if ".selection.parameters." in key and not is_grid:
            raise UserError(
                f"config.{key} is {value!r}, expected a nonempty list of numbers"
            )
        for expected, holds, names in _RULES:
            if key.rpartition(".")[-1] in names.split() and not holds(value):
                raise UserError(f"config.{key} is {value!r}, expected {expected}")
    name, keys = settings["segmenter"]["name"], settings["segmenter"].keys()
    if (name == "precomputed") != ("outputs" in keys):
        raise UserError(
            f"config.segmenter.name is {name!r}, which does not match the keys of "
            f"config.segmenter ({', '.join(keys)}); see configs/precomputed.py for "
            "'precomputed'"
        )
    sizes = settings["evaluation"]
    if depends_on_batches(flatten(settings)) and (
        sizes["sweep_batch_size"] != sizes["batch_size"]
    ):
        raise UserError(
            f"config.evaluation.sweep_batch_size is {sizes['sweep_batch_size']}, "
            f"expected {sizes['batch_size']} (evaluation.batch_size): with "
            "segmenter.model.statistics 'batch' the segmenter's output depends on the "
            "batch size"
        )
    _check_refiners(settings)


def list_trained(settings: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Returns the trainable networks (those with a `training`) by config key."""
    refiners = {f"refiner.{n}": settings["refiner"][n] for n in settings["refiners"]}
    networks = {"segmenter": settings["segmenter"]} | refiners
    return {key: network for key, network in networks.items() if "training" in network}


def find_followed(refiner: Mapping[str, Any] | ConfigDict) -> str:
    """Returns the name of the refiner that this one follows, or ""."""
    return refiner["follows"] if "follows" in refiner else ""


def check_crops(
    settings: Mapping[str, Any], sizes: set[tuple[int, int]], stride: int
) -> None:
    """Checks that crops fit into the training images, and whole images share a size.

    Args:
      settings: The config.
      sizes: The (height, width) pairs of the training images.
      stride: The divisor of crop heights and widths, in pixels, that lets precomputed
        features be cropped with the image.

    Raises:
      UserError: If crops do not fit; names the first such key.
    """
    height, width = (min(size) for size in zip(*sizes, strict=True))
    for name, network in list_trained(settings).items():
        for phase in ("training", "fine_tuning"):
            crop, key = network[phase]["crop_size"], f"config.{name}.{phase}.crop_size"
            if not network[phase]["num_epochs"]:
                continue
            if crop is None and len(sizes) > 1:
                raise UserError(
                    f"{key} is None (whole images), but the training images have "
                    f"{len(sizes)} different sizes"
                )
            if reads_frames(network[phase]) and len(sizes) > 1:
                raise UserError(
                    f"config.{name}.{phase}.inputs is 'frames', but the training "
                    f"images have {len(sizes)} different sizes"
                )
            if crop and (crop[0] > height or crop[1] > width):
                raise UserError(
                    f"{key} is {crop[0]}x{crop[1]}, which is larger than the smallest "
                    f"training image ({height}x{width})"
                )
            if any(length % stride for length in crop or (height, width)):
                raise UserError(
                    f"{key} is {crop or (height, width)}, expected multiples of "
                    f"{stride} (the stride of the coarsest features)"
                )


def _check_refiners(settings: Mapping[str, Any]) -> None:
    names, known = settings["refiners"], settings["refiner"]
    if not names:
        raise UserError("config.refiners is empty, expected at least one refiner")
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise UserError(
                f"config.refiners has an unknown refiner {name!r}, expected names "
                f"among {listed}"
            )
    for name in names:
        _check_end_to_end(name, known[name], settings["segmenter"])
        _check_objective(name, known[name])
        _check_inputs(name, known[name], settings["segmenter"])
        _check_followed(name, names, known)
    titles = [known[name]["title"] for name in names]
    for entries, what in ((names, "name"), (titles, "title")):
        for entry in entries:
            if list(entries).count(entry) > 1:
                raise UserError(f"config.refiners has duplicate {what} {entry!r}")


def _check_followed(
    name: str, names: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks that the followed refiner is in the table and follows none itself."""
    followed = find_followed(known[name])
    if not followed:
        return
    found = f"config.refiner.{name}.follows is {followed!r}"
    if "training" in known[name]:
        raise UserError(f"{found}, but a trained refiner cannot follow another one")
    others = [other for other in names if not find_followed(known[other])]
    if followed not in others:
        listed = ", ".join(others) or "none"
        raise UserError(
            f"{found}, expected a refiner in config.refiners that follows none itself: "
            f"{listed}"
        )


def _check_objective(name: str, refiner: Mapping[str, Any]) -> None:
    """Checks that the training loss is not identically 0."""
    if "training" not in refiner:
        return
    objective = refiner["objective"]
    if not objective["squared_error"] + objective["cross_entropy"]:
        raise UserError(
            f"config.refiner.{name}.objective: squared_error and cross_entropy are "
            "both 0, expected at least one > 0"
        )


def _check_end_to_end(
    name: str, refiner: Mapping[str, Any], segmenter: Mapping[str, Any]
) -> None:
    """Checks that end-to-end training has a trainable segmenter."""
    if "training" not in refiner:
        return
    if refiner["end_to_end"] and "training" not in segmenter:
        raise UserError(
            f"config.refiner.{name}.end_to_end is True, but the segmenter is not "
            "trainable (config.segmenter has no training)"
        )
    weight = refiner["objective"]["proposal_cross_entropy"]
    if weight and not refiner["end_to_end"]:
        raise UserError(
            f"config.refiner.{name}.objective.proposal_cross_entropy is {weight!r}, "
            "expected 0 unless end_to_end is True"
        )


def reads_frames(training: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether a training phase reads precomputed y and h of whole frames."""
    return "inputs" in training and training["inputs"] == "frames"


def _check_inputs(
    name: str, refiner: Mapping[str, Any], segmenter: Mapping[str, Any]
) -> None:
    """Checks that precomputed inputs stay valid throughout training."""
    for phase in ("training", "fine_tuning") if "training" in refiner else ():
        training, key = refiner[phase], f"config.refiner.{name}.{phase}.inputs"
        inputs = training.get("inputs", "crops")
        if inputs not in ("crops", "frames"):
            raise UserError(f"{key} is {inputs!r}, expected 'crops' or 'frames'")
        obstacles = {
            "jitter is > 0": training["jitter"],
            "end_to_end is True": refiner["end_to_end"],
            "the segmenter is 'precomputed'": segmenter["name"] == "precomputed",
            "segmenter.model.statistics is 'batch'": (
                segmenter["model"].get("statistics") == "batch"
            ),
        }
        for obstacle, stands in obstacles.items():
            if stands and reads_frames(training):
                raise UserError(
                    f"{key} is 'frames', expected 'crops' because {obstacle}"
                )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted path."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def depends_on_batches(settings: Mapping[str, Any]) -> bool:
    """Whether an image's labels depend on the rest of its batch; settings are flat."""
    return settings.get("segmenter.model.statistics") == "batch"
