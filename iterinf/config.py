"""What a config must say, and which part of it a workdir's results bind.

Functions of plain nested dicts: the config as config.json holds it; `list_trained` also
of the config itself.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from iterinf.errors import UserError
from iterinf.types import MONITORS

UNBOUND = (  # shape no result; what shapes one takes another workdir
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


class _Rule(NamedTuple):
    """What holds of a value, and how that is said."""

    holds: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _is_count(value: Any, *, least: int) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= least


def _are_numbers(values: Any) -> bool:
    """Whether this is a list of numbers, at least one."""
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))


def _are_positive(values: Any) -> bool:
    """Whether this is a list of numbers above 0, at least one."""
    return _are_numbers(values) and min(values) > 0


def _is_size(value: Any) -> bool:
    """Whether a crop can be of this size; None: the whole image."""
    if value is None:
        return True
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(_is_count(length, least=1) for length in value)


def _to_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _is_one_of(*known: str) -> _Rule:
    return _Rule(lambda value: value in known, f"one of {', '.join(known)}")


_COUNT = _Rule(functools.partial(_is_count, least=1), "1 or more")
_COUNT_OR_ZERO = _Rule(functools.partial(_is_count, least=0), "0 or more")
_NOT_NEGATIVE = _Rule(lambda value: _is_number(value) and value >= 0, "0 or more")
_SHARE = _Rule(lambda value: _is_number(value) and 0 <= value <= 1, "0 to 1")
_UP_TO_ONE = _Rule(
    lambda value: _is_number(value) and 0 < value <= 1, "above 0 up to 1"
)
_BELOW_ONE = _Rule(
    lambda value: _is_number(value) and 0 <= value < 1, "0 up to below 1"
)
_WIDTH = _Rule(lambda value: _are_positive(_to_list(value)), "above 0")
# float16, whose gradients underflow without loss scaling, is for inference alone.
_TRAINING_DTYPES = ("float32", "bfloat16")
_DTYPES = (*_TRAINING_DTYPES, "float16")

# Last part of a key -> the rule for its value.
_RULES: dict[str, _Rule] = {
    "crop_size": _Rule(_is_size, "height and width, or None"),
    "dtype": _is_one_of(*_TRAINING_DTYPES),
    "sweep_dtype": _Rule(
        lambda value: value in (None, *_DTYPES),
        f"None, or one of {', '.join(_DTYPES)}",
    ),
    "sweep_batch_size": _Rule(
        lambda value: value is None or _is_count(value, least=1), "1 or more, or None"
    ),
    "monitor": _is_one_of(*MONITORS),
    "metric": _is_one_of("mean_iou", "boundary_f1"),
    "boundary_tolerance": _Rule(
        lambda value: _is_number(value) and 0 <= value <= 0.05, "0 to 0.05"
    ),
    "class_weights": _is_one_of("none", "median_frequency"),
    "seed": _Rule(
        lambda value: _is_count(value, least=0) and value < 2**32, "0 up to 2^32 - 1"
    ),
    "batch_size": _COUNT,
    "num_epochs": _COUNT,
    "num_iterations": _COUNT,
    "num_resamples": _COUNT,
    "patience": _COUNT,
    "num_recycles": _COUNT_OR_ZERO,
    "trace_steps": _COUNT_OR_ZERO,
    "num_images": _COUNT_OR_ZERO,
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "sigma": _NOT_NEGATIVE,
    "jitter": _NOT_NEGATIVE,
    "stop": _NOT_NEGATIVE,
    "checkpoint_seconds": _NOT_NEGATIVE,
    "squared_error": _NOT_NEGATIVE,
    "cross_entropy": _NOT_NEGATIVE,
    "proposal_cross_entropy": _NOT_NEGATIVE,
    "switch_noise": _NOT_NEGATIVE,
    "decay_per_epoch": _UP_TO_ONE,
    "recycle_step_size": _UP_TO_ONE,
    "ema_decay": _BELOW_ONE,
    "dropout": _BELOW_ONE,
    "feature_dropout": _BELOW_ONE,
    "step_sizes": _Rule(_are_positive, "numbers above 0"),
    "damped_step_sizes": _Rule(
        lambda value: not value or _are_positive(value), "numbers above 0, or none"
    ),
    "spatial_width": _WIDTH,
    "bilateral_width": _WIDTH,
    "color_width": _Rule(
        lambda value: _are_numbers(_to_list(value)) and min(_to_list(value)) >= 1,
        "1 or more, of 255 levels",
    ),
    "flip_probability": _SHARE,
    "unpool_fill": _SHARE,
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks the values that no constructor checks.

    Raises:
      UserError: the first key that cannot be, and what it must be.
    """
    for key, value in flatten(settings).items():
        if key.endswith("fine_tuning.num_epochs") and value == 0:
            continue  # no such phase
        if ".selection.parameters." in key and not _are_numbers(value):
            raise UserError(f"config.{key} is {value!r}, expected a list of numbers")
        rule = _RULES.get(key.rpartition(".")[-1])
        if rule and not rule.holds(value):
            raise UserError(f"config.{key} is {value!r}, expected {rule.expected}")
    name, keys = settings["segmenter"]["name"], settings["segmenter"].keys()
    if (name == "precomputed") != ("outputs" in keys):
        raise UserError(
            f"config.segmenter.name is {name!r}, but this config has the keys "
            f"{', '.join(keys)}; configs/precomputed.py has those of 'precomputed'"
        )
    sizes = settings["evaluation"]
    if depends_on_batches(flatten(settings)) and (
        sizes["sweep_batch_size"] != sizes["batch_size"]
    ):
        raise UserError(
            f"config.evaluation.sweep_batch_size is {sizes['sweep_batch_size']}, "
            f"expected batch_size, {sizes['batch_size']}: the segmenter normalises by "
            "the statistics of a batch ('batch'), so that with another size the table "
            "would compare two networks"
        )
    _check_refiners(settings)


def list_trained(settings: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The networks that have a `training`, and hence parameters, by their key."""
    refiners = {f"refiner.{n}": settings["refiner"][n] for n in settings["refiners"]}
    networks = {"segmenter": settings["segmenter"]} | refiners
    return {key: network for key, network in networks.items() if "training" in network}


def find_followed(refiner: Mapping[str, Any] | ConfigDict) -> str:
    """The key of the refiner from whose result this one starts; "": from y."""
    return refiner["follows"] if "follows" in refiner else ""


def check_crops(
    settings: Mapping[str, Any], sizes: set[tuple[int, int]], stride: int
) -> None:
    """Checks that crops lie inside every training image; whole ones must be of a size.

    Args:
      settings: the config.
      sizes: (height, width) of the training images.
      stride: pixels that a crop's height and width must be multiples of, so that
        features of a network that ran elsewhere can be cropped alike.

    Raises:
      UserError: the first key whose crops do not.
    """
    height, width = (min(size) for size in zip(*sizes, strict=True))
    for name, network in list_trained(settings).items():
        for phase in ("training", "fine_tuning"):
            crop, key = network[phase]["crop_size"], f"config.{name}.{phase}.crop_size"
            if not network[phase]["num_epochs"]:
                continue
            if crop is None and len(sizes) > 1:
                raise UserError(
                    f"{key} is None, but the training images are of {len(sizes)} sizes"
                )
            if reads_frames(network[phase]) and len(sizes) > 1:
                raise UserError(
                    f"config.{name}.{phase}.inputs is 'frames', but the training "
                    f"images are of {len(sizes)} sizes"
                )
            if crop and (crop[0] > height or crop[1] > width):
                raise UserError(
                    f"{key} is {crop[0]}x{crop[1]}, but there are training images of "
                    f"{height}x{width}"
                )
            if any(length % stride for length in crop or (height, width)):
                raise UserError(
                    f"{key} is {crop or (height, width)}, expected multiples of "
                    f"{stride}, the stride of the coarsest features"
                )


def _check_refiners(settings: Mapping[str, Any]) -> None:
    names, known = settings["refiners"], settings["refiner"]
    if not names:
        raise UserError("config.refiners is empty; name at least one")
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise UserError(f"config.refiners: unknown {name!r}; known: {listed}")
    for name in names:
        _check_end_to_end(name, known[name], settings["segmenter"])
        _check_objective(name, known[name])
        _check_inputs(name, known[name], settings["segmenter"])
        _check_followed(name, names, known)
    titles = [known[name]["title"] for name in names]
    for entries, what in ((names, "name"), (titles, "title")):
        for entry in entries:
            if list(entries).count(entry) > 1:
                raise UserError(f"config.refiners: two have the {what} {entry!r}")


def _check_followed(
    name: str, names: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> None:
    """A refiner of the table can be followed, unless it follows one itself."""
    followed = find_followed(known[name])
    if not followed:
        return
    found = f"config.refiner.{name}.follows is {followed!r}"
    if "training" in known[name]:
        raise UserError(f"{found}, but this refiner is trained: on the segmenter's y")
    others = [other for other in names if not find_followed(known[other])]
    if followed not in others:
        listed = ", ".join(others) or "none"
        raise UserError(
            f"{found}, expected one of config.refiners that follows none: {listed}"
        )


def _check_objective(name: str, refiner: Mapping[str, Any]) -> None:
    """Something must be minimised."""
    if "training" not in refiner:
        return
    objective = refiner["objective"]
    if not objective["squared_error"] + objective["cross_entropy"]:
        raise UserError(
            f"config.refiner.{name}.objective has squared_error and cross_entropy of "
            "0, expected one above it"
        )


def _check_end_to_end(
    name: str, refiner: Mapping[str, Any], segmenter: Mapping[str, Any]
) -> None:
    """Only a segmenter that is trained here can be trained with a refiner."""
    if "training" not in refiner:
        return
    if refiner["end_to_end"] and "training" not in segmenter:
        raise UserError(
            f"config.refiner.{name}.end_to_end is True, but the segmenter is not "
            "trained here"
        )
    weight = refiner["objective"]["proposal_cross_entropy"]
    if weight and not refiner["end_to_end"]:
        raise UserError(
            f"config.refiner.{name}.objective.proposal_cross_entropy is {weight!r}, "
            "but y is frozen; expected 0 unless end_to_end"
        )


def reads_frames(training: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether a phase of training takes y and h from whole frames."""
    return "inputs" in training and training["inputs"] == "frames"


def _check_inputs(
    name: str, refiner: Mapping[str, Any], segmenter: Mapping[str, Any]
) -> None:
    """What is computed once of a frame must be what is wanted of it every time."""
    for phase in ("training", "fine_tuning") if "training" in refiner else ():
        training, key = refiner[phase], f"config.refiner.{name}.{phase}.inputs"
        inputs = training.get("inputs", "crops")
        if inputs not in ("crops", "frames"):
            raise UserError(f"{key} is {inputs!r}, expected one of crops, frames")
        obstacles = {
            "jitter is above 0": training["jitter"],
            "end_to_end is True": refiner["end_to_end"],
            "the segmenter is 'precomputed'": segmenter["name"] == "precomputed",
            "the segmenter normalises by the statistics of a batch": (
                segmenter["model"].get("statistics") == "batch"
            ),
        }
        for obstacle, stands in obstacles.items():
            if stands and reads_frames(training):
                raise UserError(f"{key} is 'frames', but {obstacle}; expected 'crops'")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by their dotted path."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def depends_on_batches(settings: Mapping[str, Any]) -> bool:
    """Whether an image's labels depend on those beside it; settings are flat."""
    return settings.get("segmenter.model.statistics") == "batch"
