"""Export of a finished workdir's networks for plain JAX, with a model card."""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from iterinf.config import find_followed
from iterinf.errors import UserError
from iterinf.prediction.model_card import Files, format_card, read_results
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
    any_size: bool  # whether images may have any size; batches always may


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
    missing = [
        name
        for name in ("flatbuffers", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"--mode=export needs {' and '.join(missing)}: pip install "
            f"{' '.join(missing)}"
        )
    for name in [refiner] if refiner else read_config(workdir).refiners:
        folder = workdir / "export" / name
        write_atomically(_make_files(workdir, name, folder))
        print_once(f"{folder}: see README.md there")


def _make_files(
    workdir: pathlib.Path, name: str, folder: pathlib.Path
) -> dict[pathlib.Path, bytes]:
    from safetensors.numpy import save

    pipeline, config = read_pipeline(workdir, name), read_config(workdir)
    followed = find_followed(config.refiner[name])
    before = [config.refiner[followed].title] if followed else []
    results = read_results(workdir, pipeline.titles, *before)
    weights = flatten_weights(pipeline)
    least = min(_LEAST, *pipeline.class_info.size)
    programs = {"refine.jax": export_refinement(pipeline, weights, least)}
    if not pipeline.class_info.outputs:
        whole = export_pipeline(pipeline, weights, least)
        programs["segment_and_refine.jax"] = whole
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
    contents = {file: program.content for file, program in programs.items()}
    contents["weights.safetensors"] = save(weights, metadata)
    files = Files(
        sizes={file: len(content) for file, content in contents.items()},
        num_parameters={
            network: sum(
                array.size
                for key, array in weights.items()
                if key.startswith(network) and "/params/" in key
            )
            for network in ("segmenter", "refiner")
        },
        features=_describe_features(pipeline, describe_images(pipeline.class_info)),
        least=least if programs["refine.jax"].any_size else None,
    )
    contents["README.md"] = format_card(pipeline, config, results, files).encode()
    return {folder / file: content for file, content in contents.items()}


def flatten_weights(pipeline: Pipeline) -> dict[str, np.ndarray]:
    """Returns all variables of the networks, in float32, by path."""
    return jax.device_get(flatten_dict(pipeline.networks, sep="/"))


def export_pipeline(
    pipeline: Pipeline, weights: Mapping[str, np.ndarray], least: int
) -> Program:
    """Exports (weights, images [b h w 3]) -> y [b h w k].

    The weights are an argument, so that the program is small and several programs can
    share them.

    Args:
      pipeline: A pipeline whose segmenter is not precomputed.
      weights: The result of `flatten_weights`.
      least: The minimum height and width of images.
    """

    def segment_and_refine(
        weights: Weights, images: Float[Array, "b h w 3"]
    ) -> Float[Array, "b h w k"]:
        networks = _nest(weights)
        labels = jnp.zeros(images.shape[:3], jnp.int32)
        candidate = pipeline.propose(networks, Batch(images, labels))
        return pipeline.refine(networks, candidate).y

    return _export(
        segment_and_refine,
        lambda batch: (_describe(weights), batch.image),
        pipeline,
        least,
    )


def export_refinement(
    pipeline: Pipeline, weights: Mapping[str, np.ndarray], least: int
) -> Program:
    """Exports (weights, y [b h w k], features, images [b h w 3]) -> y [b h w k].

    Args:
      pipeline: The pipeline of the refiner.
      weights: The result of `flatten_weights`; the program takes the refiners' only.
      least: The minimum height and width of images.
    """
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
        features = _describe_features(pipeline, batch)
        return _describe(own), y, features, batch.image

    return _export(refine, describe, pipeline, least)


def _export(
    function: Callable[..., Any],
    describe: Callable[[Batch], tuple],
    pipeline: Pipeline,
    least: int,
) -> Program:
    """Exports for images of any size, or else of the training images' size.

    The lattice of a dense CRF needs a static number of pixels.
    """

    def export(dimensions: str, *constraints: str) -> bytes:
        shape = jax.export.symbolic_shape(dimensions, constraints=constraints)
        arguments = describe(describe_images(pipeline.class_info, shape))
        exported = jax.export.export(jax.jit(function), platforms=_PLATFORMS)
        return bytes(exported(*arguments).serialize())

    try:
        return Program(
            export("b, h, w", f"h >= {least}", f"w >= {least}"), any_size=True
        )
    except Exception:  # the type depends on the operation that needs a static size
        height, width = pipeline.class_info.size
        return Program(export(f"b, {height}, {width}"), any_size=False)


def _nest(weights: Weights) -> dict[str, Any]:
    names = ("segmenter", "refiner", "refiner_before")
    return {name: {} for name in names} | unflatten_dict(weights, sep="/")


def _describe(weights: Mapping[str, np.ndarray]) -> Weights:
    return {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in weights.items()
    }


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
