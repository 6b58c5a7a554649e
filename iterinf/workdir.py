"""The files of a workdir: each is written and read here.

    config.json, data.json    the config, and a description of the data
    segmenter/                summary.json, statistics.npz, input.json, test.npz
    refiners/NAME/            sweep.jsonl, curve.npz, selection.json, test.npz

Training writes checkpoints/ and metrics.jsonl (training/checkpoints.py, loop.py), the
report results/ and report.html, provenance runs.jsonl.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import UInt8
from ml_collections import ConfigDict

from iterinf.config import IMPLIED, UNBOUND, depends_on_batches, find_followed, flatten
from iterinf.errors import UserError
from iterinf.runtime.distributed import ask_first
from iterinf.runtime.files import (
    has_file,
    read_arrays,
    read_json_lines,
    read_lines,
    write_arrays,
    write_json,
    write_lines,
)
from iterinf.types import Selection

Arrays = dict[str, np.ndarray]
_REMOVED = ("feature_dropout", "learn_widths")  # options of earlier versions


class Choice(NamedTuple):
    """The choice for a refiner on validation: selection.json.

    Defaults are for files of earlier versions.
    """

    refined: Selection
    damped: Selection | None = None  # of one damped step; None: there are no controls
    followed: Selection | None = None  # of the refiner that this one follows
    metric: str = "mean_iou"
    seconds: float = 0.0  # that the sweeps took


class ClassInfo(NamedTuple):
    """The classes and image format of the data."""

    classes: tuple[str, ...]  # k names
    colors: UInt8[np.ndarray, "k+1 3"]  # RGB; the last is void
    size: tuple[int, int]  # height and width of the first training image
    outputs: dict[str, int]  # number of channels of precomputed outputs, by name


def find_refiner(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a refiner."""
    return workdir / "refiners" / name


def find_network(workdir: pathlib.Path, key: str) -> pathlib.Path:
    """Returns the folder of a network by its key in the config, e.g. refiner.dae_y."""
    kind, _, name = key.partition(".")
    return find_refiner(workdir, name) if name else workdir / kind


def keep_settings(workdir: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes config.json; an earlier one must agree in every key that affects results.

    Refiners may be added. A refiner may change until its training begins, its grid of
    step sizes and iterations until the choice is made. A key that only one config has
    stands for its value in `IMPLIED`; others are compared in options alone, since
    another version of the code added them.

    Raises:
      UserError: naming the first key in which they differ.
    """
    path = workdir / "config.json"
    if has_file(path) and has_results(workdir):
        before, now = flatten(_read_json(path)), flatten(settings)
        unbound = [*UNBOUND, *_list_unbound(workdir, settings["refiner"])]
        if not depends_on_batches(now):
            unbound.append("evaluation.sweep_batch_size")
        prefixes = tuple(f"{prefix}." for prefix in unbound)
        groups = _list_groups(before) & _list_groups(now)
        for key in sorted(before.keys() | now.keys()):
            group, _, name = key.rpartition(".")
            implied = IMPLIED.get(name) if group in groups else None
            old, new = before.get(key, implied), now.get(key, implied)
            whose, found, _ = key.partition(".options.")
            owner = f"{whose}.name" if found else key  # options come with a name
            known = owner in before and owner in now or implied is not None
            if old != new and known and not f"{key}.".startswith(prefixes):
                raise UserError(
                    f"{workdir} holds results with config.{key} = {old!r}, not "
                    f"{new!r}; resume with the same flags, name another workdir, "
                    "or remove the folders of the results that depend on it"
                )
    write_json(path, settings)


def _list_groups(settings: Mapping[str, Any]) -> set[str]:
    """Returns the prefixes of flat keys, e.g. refiner.dae_y.model."""
    return {key.rpartition(".")[0] for key in settings}


def _list_unbound(workdir: pathlib.Path, names: Mapping[str, Any]) -> Iterator[str]:
    """Yields the keys of refiners that no result depends on yet."""
    for name in names:
        folder = find_refiner(workdir, name)
        yield f"refiner.{name}.title"
        if not has_file(folder / "selection.json"):
            yield f"refiner.{name}.selection"
            if not has_checkpoint(folder):
                yield f"refiner.{name}"


def has_results(folder: pathlib.Path) -> bool:
    """Whether anything under a folder was trained, chosen or measured."""
    files = ("summary.json", "sweep.jsonl", "selection.json", "test.npz")
    return has_checkpoint(folder) or ask_first(
        lambda: any(True for name in files for _ in folder.rglob(name))
    )


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a complete checkpoint lies under `folder`, at any depth.

    A write that was cut off leaves another name than the number of a step.
    """
    return ask_first(
        lambda: any(path.name.isdigit() for path in folder.glob("**/checkpoints/*"))
    )


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Reads config.json, with tuples for lists, so that networks are hashable.

    Raises:
      UserError: If there is none.
    """
    if not has_file(workdir / "config.json"):
        raise UserError(f"{workdir} is no workdir: it has no config.json")
    content = _read_json(workdir / "config.json")
    for refiner in content["refiner"].values():
        for option in _REMOVED:
            if refiner["model"].get(option) == IMPLIED[option]:
                del refiner["model"][option]
    return ConfigDict(_freeze(content))


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _freeze(entry) for key, entry in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run --mode=evaluate first") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def keep_data(workdir: pathlib.Path, described: Mapping[str, Any]) -> None:
    """Writes data.json, see `iterinf.data.dataset.describe_dataset`.

    Raises:
      UserError: If results were made from data with other classes, names or records.
    """
    path = workdir / "data.json"
    if has_file(path) and has_results(workdir):
        kept = _read_json(path)
        for name, found in described.items():
            if kept.get(name, found) != found and name != "colors":
                raise UserError(
                    f"{workdir} holds results of other data (its {name} differ); name "
                    "another workdir"
                )
    write_json(path, described)


def read_class_info(workdir: pathlib.Path) -> ClassInfo:
    """Reads from data.json what prediction needs of the data."""
    path = workdir / "data.json"
    content = _read_json(path)
    if not {"colors", "size", "outputs"} <= content.keys():
        raise UserError(
            f"{path} is from an earlier version and lacks class colours and image "
            "sizes; run --mode=report once to update it"
        )
    return ClassInfo(
        tuple(content["classes"]),
        np.array(content["colors"], np.uint8),
        (content["size"][0], content["size"][1]),
        content["outputs"],
    )


def has_summary(workdir: pathlib.Path) -> bool:
    """Whether the segmenter is trained and scored."""
    return has_file(workdir / "segmenter" / "summary.json")


def write_summary(workdir: pathlib.Path, summary: Mapping[str, float]) -> None:
    """Writes the segmenter's scores on training crops and on validation."""
    write_json(workdir / "segmenter" / "summary.json", summary)


def read_summary(workdir: pathlib.Path) -> dict[str, float]:
    """Reads the segmenter's scores."""
    return _read_json(workdir / "segmenter" / "summary.json")


def write_statistics(workdir: pathlib.Path, statistics: Mapping[str, Any]) -> None:
    """Writes the running statistics of the segmenter's batch normalisations."""
    arrays = flatten_dict(statistics, sep="/")
    write_arrays(workdir / "segmenter" / "statistics.npz", **arrays)


def read_statistics(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the running statistics; None if they are not estimated yet."""
    path = workdir / "segmenter" / "statistics.npz"
    return unflatten_dict(read_arrays(path), sep="/") if has_file(path) else None


def append_sweep(workdir: pathlib.Path, name: str, line: Mapping[str, Any]) -> None:
    """Appends to sweep.jsonl what some values of the parameters led to."""
    path = find_refiner(workdir, name) / "sweep.jsonl"
    write_lines(path, [*read_lines(path), json.dumps(line)])


def read_sweeps(workdir: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """Reads the lines of sweep.jsonl; none if there is no file."""
    return read_json_lines(find_refiner(workdir, name) / "sweep.jsonl")


def has_choice(workdir: pathlib.Path, name: str) -> bool:
    """Whether validation has chosen for a refiner."""
    return has_file(find_refiner(workdir, name) / "selection.json")


def write_choice(
    workdir: pathlib.Path, name: str, choice: Choice, curve: Mapping[str, np.ndarray]
) -> None:
    """Writes curve.npz, then selection.json."""
    folder = find_refiner(workdir, name)
    write_arrays(folder / "curve.npz", **curve)
    content = {
        key: value._asdict() if isinstance(value, Selection) else value
        for key, value in choice._asdict().items()
        if value is not None
    }
    write_json(folder / "selection.json", content)


def read_choice(workdir: pathlib.Path, name: str) -> Choice:
    """Reads selection.json.

    Raises:
      UserError: If there is none.
    """
    content = _read_json(find_refiner(workdir, name) / "selection.json")
    for key in {"refined", "damped", "followed"} & content.keys():
        content[key] = Selection(**_pick(content[key], Selection._fields))
    return Choice(**_pick(content, Choice._fields))


def _pick(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns the entries with these names; earlier versions had others."""
    return {name: content[name] for name in names if name in content}


def read_followed(
    workdir: pathlib.Path, config: ConfigDict, name: str
) -> Selection | None:
    """Reads the choice of the refiner that this one follows; None if it follows none.

    Raises:
      UserError: If that choice is missing, or has changed since this refiner's own
        choice was made.
    """
    followed = find_followed(config.refiner[name])
    if not followed:
        return None
    found = read_choice(workdir, followed).refined
    if not has_choice(workdir, name):
        return found
    known = read_choice(
        workdir, name
    ).followed  # without boundary F1 in earlier versions
    if known is None or known._replace(boundary_f1=found.boundary_f1) != found:
        raise UserError(
            f"{find_refiner(workdir, name) / 'selection.json'} was made with another "
            f"choice of {followed}; remove it to choose again"
        )
    return found


def read_curve(workdir: pathlib.Path, name: str) -> Arrays:
    """Reads curve.npz: measures on validation by step size and iteration."""
    return read_arrays(find_refiner(workdir, name) / "curve.npz")


def write_test(folder: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes test.npz of a network: counts per test image."""
    write_arrays(folder / "test.npz", **arrays)


def read_test(folder: pathlib.Path) -> Arrays | None:
    """Reads test.npz of a network.

    Returns:
      None if there is none, or it is of an earlier version, which had only confusions.
    """
    path = folder / "test.npz"
    arrays = read_arrays(path) if has_file(path) else {}
    return arrays if any(key.endswith("/num_components") for key in arrays) else None


def read_epochs(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl of a training phase, a dict per epoch."""
    return read_json_lines(folder / "metrics.jsonl")


def write_input(workdir: pathlib.Path, numbers: Mapping[str, Any]) -> None:
    """Writes the segmenter's input normalisation."""
    write_json(workdir / "segmenter" / "input.json", numbers)


def read_input(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the segmenter's input normalisation; None from earlier versions."""
    path = workdir / "segmenter" / "input.json"
    return _read_json(path) if has_file(path) else None
