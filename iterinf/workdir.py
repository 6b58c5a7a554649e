"""The files of a workdir that bind what may be done in it."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from iterinf.config import UNBOUND, depends_on_batches, flatten
from iterinf.errors import UserError
from iterinf.runtime.distributed import ask_first
from iterinf.runtime.files import has_file, write_json
from iterinf.segmenters.fcn8 import FCN8
from iterinf.segmenters.pretrained import VGG16_INPUT, find_input

_KEPT = "input.json"  # what images are normalised by, in the segmenter's folder


def keep_settings(workdir: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes config.json; an earlier one must agree in all that shaped results.

    Refiners may be added; one may change until its training begins, its grid of step
    sizes and iterations until the choice is made. Keys that only one config has are
    compared in options alone: elsewhere they come with another version of the code.

    Raises:
      UserError: the first key in which they differ.
    """
    path = workdir / "config.json"
    if has_file(path) and has_results(workdir):
        before, now = flatten(json.loads(path.read_text())), flatten(settings)
        unbound = [*UNBOUND, *_list_unbound(workdir, settings["refiner"])]
        if not depends_on_batches(now):
            unbound.append("evaluation.sweep_batch_size")
        prefixes = tuple(f"{prefix}." for prefix in unbound)
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key), now.get(key)
            whose, found, _ = key.partition(".options.")
            owner = f"{whose}.name" if found else key  # options come with a name
            known = owner in before and owner in now
            if old != new and known and not f"{key}.".startswith(prefixes):
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
        if not has_file(folder / "selection.json"):
            yield f"refiner.{name}.selection"
            if not has_checkpoint(folder):
                yield f"refiner.{name}"


def has_results(folder: pathlib.Path) -> bool:
    """Whether anything has been trained, chosen or measured under a folder."""
    files = ("summary.json", "sweep.jsonl", "selection.json", "test.npz")
    return has_checkpoint(folder) or ask_first(
        lambda: any(True for name in files for _ in folder.rglob(name))
    )


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a whole checkpoint lies under `folder`, at any depth.

    What a kill inside a write leaves has another name than the number of a step.
    """
    return ask_first(
        lambda: any(path.name.isdigit() for path in folder.glob("**/checkpoints/*"))
    )


def match_input(segmenter: nn.Module, path: str, folder: pathlib.Path) -> nn.Module:
    """Normalises images as the network did from which the initial weights come.

    Args:
      segmenter: of the config. An `input_mean` of 0 and an `input_std` of 1, the
        defaults, are replaced by those of the weights; others must equal them.
      path: file of the weights; not read once training has begun.
      folder: the segmenter's, in the workdir; `keep_input` has written there.

    Returns:
      The segmenter with that normalisation.

    Raises:
      UserError: if the file of weights cannot be read, or belongs to another
        normalisation than the one configured.
    """
    if not isinstance(segmenter, FCN8):
        return segmenter
    if not has_checkpoint(folder):
        numbers = find_input(pathlib.Path(path))
        _check_input(segmenter, numbers, path)
    elif has_file(folder / _KEPT):
        numbers = json.loads((folder / _KEPT).read_text())
    else:  # of a version that knew no other weights
        numbers = VGG16_INPUT
    return segmenter.clone(**{name: tuple(values) for name, values in numbers.items()})


def _check_input(segmenter: FCN8, numbers: Mapping[str, Any], path: str) -> None:
    for name, wanted in numbers.items():
        configured, default = getattr(segmenter, name), getattr(FCN8, name)
        if not np.allclose(configured, default) and not np.allclose(configured, wanted):
            raise UserError(
                f"config.segmenter.model.{name} is {tuple(configured)}, but the "
                f"weights in {path} were trained with {tuple(wanted)}: expected that, "
                f"or {default}, which takes it from the weights"
            )


def keep_input(segmenter: nn.Module, folder: pathlib.Path) -> None:
    """Writes into its folder what a segmenter normalises images by."""
    write_json(folder / _KEPT, describe_input(segmenter))


def describe_input(segmenter: nn.Module) -> dict[str, tuple[float, ...]]:
    """What a segmenter normalises images by, as attributes; none, if by nothing."""
    if not isinstance(segmenter, FCN8):
        return {}
    return {name: getattr(segmenter, name) for name in VGG16_INPUT}
