"""Export of a finished workdir's networks for plain JAX, with a model card."""

import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from iterinf.config import find_followed
from iterinf.errors import UserError
from iterinf.prediction.model_card import format_card, read_results
from iterinf.prediction.pipeline import (
    Pipeline,
    describe_images,
    read_pipeline,
)
from iterinf.runtime.distributed import print_once
from iterinf.runtime.files import write_atomically
from iterinf.segmenters.pretrained import describe_input
from iterinf.types import Batch, Candidate
from iterinf.workdir import read_config

_PLATFORMS = ("cpu", "cuda", "tpu")
_LEAST = 64  # minimum height and width, unless training images are smaller

Weights = dict[str, Any]  # by name, e.g. segmenter/params/conv1_1/kernel


class Program(NamedTuple):
    """An exported function."""

    content: bytes
    least: int | None  # minimum image height and width; None: training size only


def export_workdir(workdir: pathlib.Path, refiner: str) -> None:
    """Writes export/<refiner>/ into a workdir; needs no data.

    segment_and_refine.jax  (weights, images) -> y; absent for precomputed outputs
    refine.jax              (refiner weights, y, features, images) -> y
    weights.safetensors     the weights of segmenter and refiner
    README.md               the model card, with code to load the files

    Args:
      workdir: A workdir with a results table.
      refiner: A key of its config's `refiner`; "" exports every refiner of its table.

    Raises:
      UserError: If a package is missing or the workdir is not finished.
    """
    if not all(map(importlib.util.find_spec, ("flatbuffers", "safetensors"))):
        raise UserError(
            "--mode=export needs flatbuffers and safetensors: pip install flatbuffers "
            "safetensors"
        )
    for name in [refiner] if refiner else read_config(workdir).refiners:
        folder = workdir / "export" / name
        files = _make_files(workdir, name)
        write_atomically({folder / file: files[file] for file in files})
        print_once(f"{folder}: see README.md there")


def _make_files(workdir: pathlib.Path, name: str) -> dict[str, bytes]:
    from safetensors.numpy import save

    pipeline, config = read_pipeline(workdir, name), read_config(workdir)
    followed = find_followed(config.refiner[name])
    before = [config.refiner[followed].title] if followed else []
    results = read_results(workdir, pipeline.titles, *before)
    refinement = export_refinement(pipeline)
    files = {"refine.jax": refinement.content}
    if not pipeline.class_info.outputs:
        files["segment_and_refine.jax"] = export_pipeline(pipeline).content
    metadata = {
        "format": "np",
        "config": config.to_json(),
        "commit": results.provenance["commit"],
        "refiner": name,
        "selection": json.dumps(pipeline.selection._asdict()),
        "stop": json.dumps(pipeline.stop),
        "input": json.dumps(describe_input(pipeline.segmenter)),
        "classes": json.dumps(pipeline.class_info.classes),
    }
    files["weights.safetensors"] = save(flatten_weights(pipeline), metadata)
    features = _describe_features(pipeline, describe_images(pipeline.class_info))
    card = format_card(pipeline, config, results, files, features, refinement.least)
    return files | {"README.md": card.encode()}


def flatten_weights(pipeline: Pipeline) -> dict[str, np.ndarray]:
    """Returns all variables of the networks, in float32, by path."""
    return jax.device_get(flatten_dict(pipeline.networks, sep="/"))


def export_pipeline(pipeline: Pipeline) -> Program:
    """Exports (weights, images [b h w 3]) -> y [b h w k].

    The weights are an argument, so that the program is small and several programs can
    share them. The segmenter must not be precomputed.
    """
    weights = flatten_weights(pipeline)

    def segment_and_refine(
        weights: Weights, images: Float[Array, "b h w 3"]
    ) -> Float[Array, "b h w k"]:
        networks = _nest(weights)
        labels = jnp.zeros(images.shape[:3], jnp.int32)
        candidate = pipeline.propose(networks, Batch(images, labels))
        return pipeline.refine(networks, candidate).y

    return _export(segment_and_refine, lambda batch: (weights, batch.image), pipeline)


def export_refinement(pipeline: Pipeline) -> Program:
    """Exports (refiner weights, y [b h w k], features, images [b h w 3]) -> y."""
    weights = flatten_weights(pipeline)
    own = {name: a for name, a in weights.items() if name.startswith("refiner")}

    def refine(
        weights: Weights,
        y: Float[Array, "b h w k"],
        features: dict[str, Float[Array, "b _ _ _"]],
        images: Float[Array, "b h w 3"],
    ) -> Float[Array, "b h w k"]:
        candidate = Candidate(y, {"input": images} | features, images)
        return pipeline.refine(_nest(weights), candidate).y

    def describe(batch: Batch) -> tuple:
        shape = (*batch.image.shape[:3], len(pipeline.class_info.classes))
        y = jax.ShapeDtypeStruct(shape, jnp.float32)
        return own, y, _describe_features(pipeline, batch), batch.image

    return _export(refine, describe, pipeline)


def _export(
    function: Callable[..., Any],
    describe: Callable[[Batch], tuple],
    pipeline: Pipeline,
) -> Program:
    """Exports for images of any size, or else of the training images' size.

    The lattice of a dense CRF needs a static number of pixels.
    """

    def export(dimensions: str, *constraints: str) -> bytes:
        shape = jax.export.symbolic_shape(dimensions, constraints=constraints)
        arguments = describe(describe_images(pipeline.class_info, shape))
        exported = jax.export.export(jax.jit(function), platforms=_PLATFORMS)
        return bytes(exported(*arguments).serialize())

    height, width = pipeline.class_info.size
    least = min(_LEAST, height, width)
    try:
        return Program(export("b, h, w", f"h >= {least}", f"w >= {least}"), least)
    except Exception:  # the type depends on the operation that needs a static size
        return Program(export(f"b, {height}, {width}"), None)


def _nest(weights: Weights) -> dict[str, Any]:
    """Inverts `flatten_weights`; networks without variables are empty."""
    names = ("segmenter", "refiner", "refiner_before")
    return {name: {} for name in names} | unflatten_dict(weights, sep="/")


def _describe_features(pipeline: Pipeline, batch: Batch) -> dict[str, Any]:
    """Returns the shapes of the features that the refiners read, without the image."""
    candidate = jax.eval_shape(pipeline.propose, pipeline.networks, batch)
    refiners = (pipeline.refiner, pipeline.before and pipeline.before.refiner)
    return {
        name: jax.ShapeDtypeStruct(candidate.features[name].shape, jnp.float32)
        for refiner in refiners
        for name in getattr(refiner, "features", ())
        if name != "input"
    }
