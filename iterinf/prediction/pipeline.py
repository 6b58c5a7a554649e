"""Loading of a finished workdir's networks and choices, without its data."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from iterinf.config import find_followed
from iterinf.data.external import STRIDES
from iterinf.errors import UserError
from iterinf.evaluation.chain import Loop
from iterinf.refiners import create_refiner
from iterinf.runtime.devices import replicate
from iterinf.runtime.xla import compile_for_once
from iterinf.segmenters import create_segmenter
from iterinf.segmenters.pretrained import VGG16_INPUT, find_input, match_input
from iterinf.training.checkpoints import Checkpoints
from iterinf.training.objectives import (
    Networks,
    Variables,
    combine,
    propose,
    set_scalars,
)
from iterinf.types import Batch, Candidate, Refinement, Selection
from iterinf.workdir import (
    ClassInfo,
    find_refiner,
    has_checkpoint,
    read_choice,
    read_class_info,
    read_config,
    read_followed,
    read_input,
    read_statistics,
)


class Pipeline(NamedTuple):
    """A segmenter and a refiner, with the choices made on validation."""

    segmenter: nn.Module
    refiner: nn.Module
    networks: Networks  # variables of both, and of a "refiner_before"
    selection: Selection
    stop: float  # tolerance of `iterinf.inference.stopping_step`; 0: no image stops
    class_info: ClassInfo
    titles: tuple[str, str]  # of segmenter and refiner, as in the table
    before: Loop | None = None  # loop of the followed refiner, if any

    def propose(self, networks: Networks, batch: Batch) -> Candidate:
        """Computes the initial prediction; images are in [0, 1]."""
        return propose(self.segmenter, networks["segmenter"], batch)

    def refine(
        self, networks: Networks, candidate: Candidate, **options: Any
    ) -> Refinement:
        """Runs the loop of the followed refiner, if any, and then the refiner's own.

        Args:
          networks: The variables, an argument so that compiled functions do not hold
            them as constants.
          candidate: The initial prediction.
          **options: Options of `iterinf.refine`, e.g. `observe`, a function of y.
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
    """Creates the segmenter of a config, without parameters.

    Args:
      config: The config, see configs/base.py.
      num_classes: The number of classes.
      workdir: The workdir, which stores the input normalisation of pretrained weights
        once training has begun; before that it is read from the weights file.

    Raises:
      UserError: If a name or option is unknown or the weights file cannot be read.
    """
    segmenter = create_segmenter(
        config.segmenter.name,
        num_classes=num_classes,
        dtype=jnp.dtype(config.dtype),
        **config.segmenter.model,
    )
    if "training" not in config.segmenter or not config.segmenter.init_from:
        return segmenter
    path = config.segmenter.init_from
    normalisation: Mapping[str, Any] = read_input(workdir) or VGG16_INPUT
    if not has_checkpoint(workdir / "segmenter"):
        normalisation = find_input(pathlib.Path(path))
    return match_input(segmenter, normalisation, path)


def build_refiner(
    config: ConfigDict, name: str, segmenter: nn.Module, num_classes: int
) -> nn.Module:
    """Creates a refiner of a config for its segmenter, without parameters."""
    settings = config.refiner[name]
    return create_refiner(
        settings.name,
        num_classes=num_classes,
        feature_offset=segmenter.feature_offset,
        dtype=jnp.dtype(config.dtype),
        **settings.model,
    )


def set_test_dtype(network: nn.Module, config: ConfigDict) -> nn.Module:
    """Returns the network in the dtype of the sweep and all later stages."""
    return network.clone(dtype=jnp.dtype(config.evaluation.sweep_dtype or config.dtype))


def make_loop(
    config: ConfigDict, name: str, refiner: nn.Module, selection: Selection
) -> Loop:
    """Returns the loop of a refiner with its choice."""
    stop = config.refiner[name].selection.stop
    return Loop(refiner, selection.step_size, selection.num_iterations, stop)


def read_pipeline(workdir: pathlib.Path, refiner: str | None = None) -> Pipeline:
    """Reads the networks and choices of an experiment.

    Args:
      workdir: The workdir of an experiment after `--mode=sweep` or a later stage.
      refiner: A key of its config's `refiner`; None for the last row of its table.

    Raises:
      UserError: If the workdir has no such refiner or no choice for it, or an image's
        labels would depend on the rest of its batch.
    """
    config = read_config(workdir)
    name = config.refiners[-1] if refiner is None else refiner
    if name not in config.refiners:
        raise UserError(
            f"{workdir} has no refiner {name!r}, expected one of "
            f"{', '.join(config.refiners)}"
        )
    class_info = read_class_info(workdir)
    selection = read_choice(workdir, name).refined
    segmenter = build_segmenter(config, len(class_info.classes), workdir)
    if getattr(segmenter, "statistics", "") == "batch":
        raise UserError(
            f"config.segmenter.model.statistics of {workdir} is 'batch', so an image's "
            "labels depend on the rest of its batch; expected 'image' or 'running'"
        )
    frozen = {"segmenter": _restore_segmenter(workdir, config, segmenter, class_info)}
    restore = functools.partial(
        _restore_refiner, workdir, config, segmenter, frozen, class_info
    )
    network, networks = restore(name, selection.parameters)
    followed, before = find_followed(config.refiner[name]), None
    if chosen := read_followed(workdir, config, name):
        first, others = restore(followed, chosen.parameters)
        before = make_loop(config, followed, first, chosen)
        own = networks["refiner"]
        networks = others | {"refiner_before": others["refiner"], "refiner": own}
    settings = config.refiner[name]
    return Pipeline(
        set_test_dtype(segmenter, config),
        network,
        replicate(networks),
        selection,
        settings.selection.stop,
        class_info,
        (config.segmenter.title, f"{config.segmenter.title} + {settings.title}"),
        before,
    )


def _restore_segmenter(
    workdir: pathlib.Path,
    config: ConfigDict,
    segmenter: nn.Module,
    class_info: ClassInfo,
) -> Variables:
    variables: Variables = {}
    if "training" in config.segmenter:
        shapes = jax.eval_shape(
            segmenter.init, jax.random.key(0), describe_images(class_info).image
        )
        folder = workdir / "segmenter"
        variables["params"] = _restore(folder, config.segmenter, shapes["params"])
    if getattr(segmenter, "statistics", "") == "running":
        statistics = read_statistics(workdir)
        if statistics is None:
            raise UserError(f"{workdir} has no segmenter/statistics.npz")
        variables["statistics"] = statistics
    return variables


def _restore_refiner(
    workdir: pathlib.Path,
    config: ConfigDict,
    segmenter: nn.Module,
    frozen: Networks,
    class_info: ClassInfo,
    name: str,
    parameters: Mapping[str, float],
) -> tuple[nn.Module, Networks]:
    """Restores a refiner with its chosen parameters, and the segmenter's variables."""
    settings = config.refiner[name]
    refiner = build_refiner(config, name, segmenter, len(class_info.classes))
    candidate = jax.eval_shape(
        functools.partial(propose, segmenter),
        frozen["segmenter"],
        describe_images(class_info),
    )
    if "training" in settings:
        shapes = jax.eval_shape(refiner.init, jax.random.key(0), candidate)
        params = {"refiner": shapes["params"]}
        if settings.end_to_end:
            params["segmenter"] = frozen["segmenter"]["params"]
        params = _restore(find_refiner(workdir, name), settings, params)
    else:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), candidate)
        variables = compile_for_once(refiner.init)(jax.random.key(0), zeros)
        params = {"refiner": variables.get("params", {})}
    networks = set_scalars(combine(params, frozen), parameters)
    return set_test_dtype(refiner, config), networks


def _restore(folder: pathlib.Path, settings: ConfigDict, params: Any) -> Any:
    """Restores the best parameters of a network's last training phase."""
    phase = folder
    if settings.fine_tuning.num_epochs:
        phase = folder / "fine_tuning"
    if not has_checkpoint(phase):
        raise UserError(f"no checkpoint in {phase}; train the network first")
    with Checkpoints(phase / "checkpoints") as checkpoints:
        return checkpoints.restore_best({"params": params})["params"]


def describe_images(class_info: ClassInfo, shape: Sequence[Any] | None = None) -> Batch:
    """Returns the shapes of a batch.

    Args:
      class_info: The classes and image format.
      shape: The b h w, integers or symbolic; None for one image of the training size.
    """
    batch_size, height, width = shape or (1, *class_info.size)

    def describe(stride: int, *channels: int) -> Any:
        size = (height // stride, width // stride)
        return jax.ShapeDtypeStruct((batch_size, *size, *channels), jnp.float32)

    outputs = {
        name: describe(STRIDES[name], channels)
        for name, channels in class_info.outputs.items()
    }
    return Batch(describe(1, 3), describe(1), outputs)
