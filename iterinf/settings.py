"""What a config must say, and which part of it a workdir's results bind.

Functions of plain nested dicts: the config as config.json holds it.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from iterinf.errors import UserError
from iterinf.files import write_json
from iterinf.objectives import METRICS

_COUNTS = {
    "batch_size",
    "num_epochs",
    "num_iterations",
    "num_resamples",
    "patience",
}
_NOT_NEGATIVE = {"seed", "learning_rate", "weight_decay", "sigma", "jitter"}
_STEP_SIZES = {"step_sizes", "damped_step_sizes"}
_CLASS_WEIGHTS = ("none", "median_frequency")
_DTYPES = ("float32", "bfloat16", "float16")
_UNBOUND = (  # shape no result; what shapes one takes another workdir
    "refiners",
    "progress",
    "loader",
    "evaluation",
    "dataset.options.path",
    "dataset.options.source",
    "dataset.options.data_dir",
    "dataset.options.cache",
    "segmenter.title",
)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks the values that no constructor checks.

    Raises:
      UserError: the first key that cannot be, and what it must be.
    """
    for key, value in flatten(settings).items():
        name = key.rpartition(".")[-1]
        if name == "crop_size" and not _is_size(value):
            raise UserError(
                f"config.{key} is {value!r}, expected height and width, or None"
            )
        if name in _NOT_NEGATIVE and value < 0:
            raise UserError(f"config.{key} is {value!r}, expected 0 or more")
        least = 0 if key.endswith("fine_tuning.num_epochs") else 1
        if name in _COUNTS and not value >= least:
            raise UserError(f"config.{key} is {value!r}, expected {least} or more")
        if name in _STEP_SIZES and not (value and min(value) > 0):
            raise UserError(f"config.{key} is {value!r}, expected numbers above 0")
        if name == "monitor" and value not in METRICS:
            known = " or ".join(METRICS)
            raise UserError(f"config.{key} is {value!r}, expected {known}")
        if name == "class_weights" and value not in _CLASS_WEIGHTS:
            known = " or ".join(_CLASS_WEIGHTS)
            raise UserError(f"config.{key} is {value!r}, expected {known}")
        if name == "dtype" and value not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(f"config.{key} is {value!r}, expected one of {known}")
    _check_refiners(settings)


def check_crops(settings: Mapping[str, Any], smallest: tuple[int, int]) -> None:
    """Checks that crops lie inside the smallest training image (height, width).

    Raises:
      UserError: the first key whose crops do not.
    """
    for key, size in flatten(settings).items():
        name = key.split(".")
        used = name[0] != "refiner" or name[1] in settings["refiners"]
        if name[-1] == "crop_size" and size and used:
            if size[0] > smallest[0] or size[1] > smallest[1]:
                raise UserError(
                    f"config.{key} is {size[0]}x{size[1]}, but there are training "
                    f"images of {smallest[0]}x{smallest[1]}"
                )


def _is_size(value: Any) -> bool:
    """Whether a crop can be of this size; None: it is the whole image."""
    if value is None:
        return True
    return isinstance(value, list) and len(value) == 2 and min(value) >= 1


def _check_refiners(settings: Mapping[str, Any]) -> None:
    names, known = settings["refiners"], settings["refiner"]
    if not names:
        raise UserError("config.refiners is empty; name at least one")
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise UserError(f"config.refiners: unknown {name!r}; known: {listed}")
    titles = [known[name]["title"] for name in names]
    for entries, what in ((names, "name"), (titles, "title")):
        for entry in entries:
            if list(entries).count(entry) > 1:
                raise UserError(f"config.refiners: two have the {what} {entry!r}")


def keep_settings(workdir: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes config.json; an earlier one must agree in all that shaped results.

    Refiners may be added; one may change until its training begins, its grid of step
    sizes and iterations until the choice is made.

    Raises:
      UserError: the first key in which they differ.
    """
    path = workdir / "config.json"
    if path.exists() and any(workdir.glob("**/checkpoints/*")):
        before, now = flatten(json.loads(path.read_text())), flatten(settings)
        unbound = [*_UNBOUND, *_list_unbound(workdir, settings["refiner"])]
        prefixes = tuple(f"{prefix}." for prefix in unbound)
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key), now.get(key)
            if old != new and not f"{key}.".startswith(prefixes):
                raise UserError(
                    f"{workdir} holds results with config.{key} = {old!r}, not "
                    f"{new!r}; go on with the same flags, or name another workdir"
                )
    write_json(path, settings)


def _list_unbound(workdir: pathlib.Path, names: Mapping[str, Any]) -> Iterator[str]:
    """The keys of refiners that no result depends on yet."""
    for name in names:
        folder = workdir / "refiners" / name
        yield f"refiner.{name}.title"
        if not (folder / "selection.json").exists():
            yield f"refiner.{name}.selection"
            if not any(folder.glob("checkpoints/*")):
                yield f"refiner.{name}"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by their dotted path."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
