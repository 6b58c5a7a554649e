"""A finished workdir's networks and choices, read without its data."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import UInt8
from ml_collections import ConfigDict

from iterinf.config import find_followed
from iterinf.data.external import STRIDES
from iterinf.errors import UserError
from iterinf.evaluation.chain import Loop
from iterinf.evaluation.selection import Selection
from iterinf.refiners import create_refiner
from iterinf.runtime.devices import replicate
from iterinf.runtime.files import has_file, read_arrays
from iterinf.runtime.xla import compile_for_once
from iterinf.segmenters import create_segmenter
from iterinf.training.checkpoints import Checkpoints
from iterinf.training.objectives import (
    Networks,
    Variables,
    combine,
    propose,
    replace_numbers,
)
from iterinf.types import Batch, Candidate, Refinement
from iterinf.workdir import has_checkpoint, match_input


class Followed(NamedTuple):
    """The choice of a refiner that another one starts from."""

    name: str  # its key in the config
    step_size: float
    num_iterations: int
    parameters: dict[str, float]
    mean_iou: float  # on validation, a fraction: tells one training from another
    stop: float

    def make_loop(self, refiner: nn.Module) -> Loop:
        """The loop of this choice."""
        return Loop(refiner, self.step_size, self.num_iterations, self.stop)


class Legend(NamedTuple):
    """What a workdir knows of its data."""

    classes: tuple[str, ...]  # k names
    colors: UInt8[np.ndarray, "k+1 3"]  # RGB; the last is void
    size: tuple[int, int]  # height and width of the first training image
    outputs: dict[str, int]  # channels by name, of a network that ran elsewhere


class Pipeline(NamedTuple):
    """Image -> labelling: a segmenter, a refiner, and what validation chose."""

    segmenter: nn.Module
    refiner: nn.Module
    networks: Networks  # variables of both, and of the "refiner_before"
    selection: Selection
    stop: float  # tolerance of `iterinf.inference.stopping_step`; 0: no image stops
    legend: Legend
    titles: tuple[str, str]  # of segmenter and refiner, as in the table
    before: Loop | None = None  # of the refiner that is followed, if any

    def propose(self, networks: Networks, batch: Batch) -> Candidate:
        """Runs the segmenter; images in [0, 1]."""
        return propose(self.segmenter, networks["segmenter"], batch)

    def refine(
        self, networks: Networks, candidate: Candidate, **options: Any
    ) -> Refinement:
        """Iterates as validation chose, first the refiner that is followed, if any.

        Args:
          networks: as the attribute; handed in, so that a compiled function need not
            hold them as constants.
          candidate: from `propose`, or made of another network's probabilities.
          **options: of `iterinf.refine`, e.g. `observe`, a function of y.
        """
        own = Loop(self.refiner, *self.selection[:2], self.stop)
        loops = {"refiner_before": self.before, "refiner": own}
        observed = []
        for name, loop in loops.items():
            if loop is not None:
                y, observations = loop.refine(networks[name], candidate, **options)
                candidate = candidate._replace(y=y)
                observed.append(observations)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *observed)
        return Refinement(candidate.y, joined)


def build_segmenter(
    config: ConfigDict, num_classes: int, workdir: pathlib.Path
) -> nn.Module:
    """The segmenter of a config, without parameters.

    Args:
      config: as of configs/base.py.
      num_classes: K.
      workdir: says how images are normalised, once training has begun from weights of
        another network; until then their file is read for that.

    Raises:
      UserError: an unknown name or option, or if that file cannot be read.
    """
    segmenter = create_segmenter(
        config.segmenter.name,
        num_classes=num_classes,
        dtype=jnp.dtype(config.dtype),
        **config.segmenter.model,
    )
    if "training" in config.segmenter and config.segmenter.init_from:
        path = config.segmenter.init_from
        return match_input(segmenter, path, workdir / "segmenter")
    return segmenter


def build_refiner(
    config: ConfigDict, name: str, segmenter: nn.Module, num_classes: int
) -> nn.Module:
    """A refiner of a config, for what its segmenter proposes, without parameters."""
    settings = config.refiner[name]
    return create_refiner(
        settings.name,
        num_classes=num_classes,
        feature_offset=segmenter.feature_offset,
        dtype=jnp.dtype(config.dtype),
        **settings.model,
    )


def set_test_dtype(network: nn.Module, config: ConfigDict) -> nn.Module:
    """The network in the dtype of choices, counts, pictures and predictions."""
    return network.clone(dtype=jnp.dtype(config.evaluation.sweep_dtype or config.dtype))


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The config that a workdir's results were made with.

    Raises:
      UserError: if there is none.
    """
    return ConfigDict(_freeze(_read_json(workdir / "config.json")))


def read_followed(
    workdir: pathlib.Path, config: ConfigDict, name: str
) -> Followed | None:
    """Reads the choice that a refiner starts from; None: it follows no other.

    Raises:
      UserError: if that is not made yet, or is another than this refiner's own choice
        was made with.
    """
    followed = find_followed(config.refiner[name])
    if not followed:
        return None
    chosen = _read_json(workdir / "refiners" / followed / "selection.json")["refined"]
    chosen.pop("boundary_f1", None)  # earlier versions knew none
    stop = config.refiner[followed].selection.stop
    found = Followed(name=followed, stop=stop, **chosen)
    path = workdir / "refiners" / name / "selection.json"
    if has_file(path) and _read_json(path).get("followed") != found._asdict():
        raise UserError(
            f"{path} was chosen after another choice of {followed}; remove it to "
            "choose anew"
        )
    return found


def read_pipeline(workdir: pathlib.Path, refiner: str | None = None) -> Pipeline:
    """Reads networks and choices of an experiment.

    Args:
      workdir: of an experiment whose choices are made (`--mode=sweep` or later).
      refiner: a key of its config's `refiner`; None: the last row of its table.

    Raises:
      UserError: if the workdir holds no such refiner, or no choice for it yet; if an
        image's labels would depend on those beside it.
    """
    config = read_config(workdir)
    name = config.refiners[-1] if refiner is None else refiner
    if name not in config.refiners:
        raise UserError(
            f"{workdir} has no refiner {name!r}; it has {', '.join(config.refiners)}"
        )
    legend = _read_legend(workdir / "data.json")
    content = _read_json(workdir / "refiners" / name / "selection.json")
    selection = Selection(**content["refined"])
    segmenter = build_segmenter(config, len(legend.classes), workdir)
    if getattr(segmenter, "statistics", "") == "batch":
        raise UserError(
            f"the segmenter of {workdir} normalises by the statistics of a batch, so "
            "that an image's labels depend on the others; expected 'image' or 'running'"
        )
    frozen = {"segmenter": _restore_segmenter(workdir, config, segmenter, legend)}
    restore = functools.partial(
        _restore_refiner, workdir, config, segmenter, frozen, legend
    )
    network, networks = restore(name, selection.parameters)
    followed, before = read_followed(workdir, config, name), None
    if followed:
        first, others = restore(followed.name, followed.parameters)
        before, own = followed.make_loop(first), networks["refiner"]
        networks = others | {"refiner_before": others["refiner"], "refiner": own}
    settings = config.refiner[name]
    return Pipeline(
        set_test_dtype(segmenter, config),
        network,
        replicate(networks),
        selection,
        settings.selection.stop,
        legend,
        (config.segmenter.title, f"{config.segmenter.title} + {settings.title}"),
        before,
    )


def _restore_segmenter(
    workdir: pathlib.Path, config: ConfigDict, segmenter: nn.Module, legend: Legend
) -> Variables:
    variables: Variables = {}
    if "training" in config.segmenter:
        shapes = jax.eval_shape(
            segmenter.init, jax.random.key(0), describe_images(legend).image
        )
        folder = workdir / "segmenter"
        variables["params"] = _restore(folder, config.segmenter, shapes["params"])
    if getattr(segmenter, "statistics", "") == "running":
        arrays = read_arrays(workdir / "segmenter" / "statistics.npz")
        variables["statistics"] = unflatten_dict(arrays, sep="/")
    return variables


def _restore_refiner(
    workdir: pathlib.Path,
    config: ConfigDict,
    segmenter: nn.Module,
    frozen: Networks,
    legend: Legend,
    name: str,
    parameters: Mapping[str, float],
) -> tuple[nn.Module, Networks]:
    """A refiner with its chosen parameters, and the segmenter's it was trained with."""
    settings = config.refiner[name]
    refiner = build_refiner(config, name, segmenter, len(legend.classes))
    candidate = jax.eval_shape(
        functools.partial(propose, segmenter),
        frozen["segmenter"],
        describe_images(legend),
    )
    if "training" in settings:
        shapes = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
        params = {"refiner": shapes["params"]}
        if settings.end_to_end:
            params["segmenter"] = frozen["segmenter"]["params"]
        params = _restore(workdir / "refiners" / name, settings, params)
    else:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), candidate)
        variables = compile_for_once(refiner.init)(jax.random.key(0), zeros)
        params = {"refiner": variables.get("params", {})}
    networks = replace_numbers(combine(params, frozen), parameters)
    return set_test_dtype(refiner, config), networks


def _restore(folder: pathlib.Path, settings: ConfigDict, params: Any) -> Any:
    """The best parameters of a network's last phase."""
    phase = folder
    if settings.fine_tuning.num_epochs:
        phase = folder / "fine_tuning"
    if not has_checkpoint(phase):
        raise UserError(f"there is no checkpoint in {phase}; train first")
    with Checkpoints(phase / "checkpoints", maximize=True) as checkpoints:
        return checkpoints.restore_best({"params": params})["params"]


def describe_images(legend: Legend, shape: Sequence[Any] | None = None) -> Batch:
    """Shapes of a batch.

    Args:
      legend: of the data.
      shape: b h w, integers or symbolic; None: one image of the legend's size.
    """
    batch_size, height, width = shape or (1, *legend.size)

    def describe(stride: int, *channels: int) -> Any:
        size = (height // stride, width // stride)
        return jax.ShapeDtypeStruct((batch_size, *size, *channels), jnp.float32)

    outputs = {
        name: describe(STRIDES[name], channels)
        for name, channels in legend.outputs.items()
    }
    return Batch(describe(1, 3), describe(1), outputs)


def _read_legend(path: pathlib.Path) -> Legend:
    content = _read_json(path)
    if not {"colors", "size", "outputs"} <= content.keys():
        raise UserError(
            f"{path} is of an earlier version, without the colors of classes and the "
            "size of images; run --mode=report once"
        )
    return Legend(
        tuple(content["classes"]),
        np.array(content["colors"], np.uint8),
        (content["size"][0], content["size"][1]),
        content["outputs"],
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"there is no {path}; run --mode=evaluate first") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _freeze(value: Any) -> Any:
    """Lists as tuples, as configs have them: networks must be hashable."""
    if isinstance(value, Mapping):
        return {key: _freeze(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(map(_freeze, value))
    return value
