"""The model card of exported networks: description, usage and results."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from iterinf.errors import UserError
from iterinf.prediction.pipeline import Pipeline
from iterinf.report.results import SUFFIXES
from iterinf.workdir import ClassInfo

_DATA = {
    "camvid": "Trained on CamVid, which is CC BY-NC 4.0: not for commercial use. Its "
    "training images are frames of three daytime drives through Cambridge; other "
    "towns, weather and cameras are out of distribution.",
    "streets": "Trained on synthetic drawings of streets only, not on photographs: a "
    "demonstration.",
    "folder": "Trained on private images: state their licence, which also covers these "
    "weights, here before sharing them.",
}

_CITATION = """@article{romero2017image,
  title={Image Segmentation by Iterative Inference from Conditional Score Estimation},
  author={Romero, Adriana and Drozdzal, Michal and Erraqabi, Akram and J{\\'e}gou, Simon
          and Bengio, Yoshua},
  journal={arXiv preprint arXiv:1705.07450},
  year={2017}
}"""

_READER = '''import json

import jax
import jax.export
import numpy as np


def read_weights(path):
    """Reads a .safetensors file of float32 arrays, by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        content = file.read()
    del header["__metadata__"]
    return {
        name: np.frombuffer(content[slice(*entry["data_offsets"])], np.float32)
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


def read_function(path):
    with open(path, "rb") as file:
        return jax.jit(jax.export.deserialize(file.read()).call)


weights = jax.device_put(read_weights("weights.safetensors"))'''


class Results(NamedTuple):
    """The results of one refiner."""

    lines: Sequence[str]  # Markdown table: header, rule, rows
    notes: Sequence[str]
    provenance: Mapping[str, Any]


class Files(NamedTuple):
    """A description of the exported files."""

    sizes: dict[str, int]  # bytes by file name
    num_parameters: dict[str, int]  # of "segmenter" and "refiner"
    features: dict[str, Any]  # shapes that refine.jax reads for one training image
    least: int | None  # minimum image height and width; None: training size only


def read_results(
    workdir: pathlib.Path, titles: tuple[str, str], *others: str
) -> Results:
    """Reads the rows of a segmenter and a refiner from a workdir's table.

    Args:
      workdir: The workdir of a finished experiment.
      titles: The titles of both in the table.
      *others: The titles of other networks whose provenance is included.

    Raises:
      UserError: If there is no table or it lacks these rows.
    """
    folder = workdir / "results"
    try:
        document = json.loads((folder / "table.json").read_text())
        lines = (folder / "table.md").read_text().splitlines()
    except OSError as error:
        raise UserError(
            f"{folder} has no results table; run --mode=report first"
        ) from error
    plain, refined = titles
    models = [row["model"] for row in document["rows"]]
    if refined not in models:
        raise UserError(
            f"the table in {folder} has no row {refined!r}; run --mode=report first"
        )
    chosen = [
        line
        for model, line in zip(models, lines[2:], strict=False)
        if model in {plain, *(refined + suffix for suffix in SUFFIXES.values())}
    ]
    described = {plain, refined.removeprefix(f"{plain} + "), *others}
    general = {"command", "commit", "hardware", "versions", "seed"}
    return Results(
        [*lines[:2], *chosen],
        [note for note in document["notes"] if note.startswith(f"{refined} ")],
        {
            name: value
            for name, value in document["provenance"].items()
            if name in general | described
        },
    )


def format_card(
    pipeline: Pipeline, config: ConfigDict, results: Results, files: Files
) -> str:
    """Formats the card as Markdown; its code needs only JAX and the card's folder."""
    sections = [
        f"# {pipeline.titles[1]}",
        *_describe(pipeline),
        "## Files",
        _format_files(files),
        "## Use",
        f'Install `pip install "jax>={jax.__version__}" flatbuffers` (JAX versions '
        "released within six months can run these programs). On CPU, CUDA or TPU:",
        f"```python\n{_READER}\n```",
        *_format_calls(pipeline.class_info, files),
        "## Classes",
        _format_classes(pipeline.class_info),
        "## Training",
        _format_training(config, results.provenance),
        "## Results",
        "\n".join(results.lines),
        "All values are in per cent, on test images not used for any choice. `gain` is "
        "the difference in mean IoU from the first row, in percentage points, with its "
        "95% paired interval `gain_low` to `gain_high`. The interval does not cover "
        "training seeds.",
        *results.notes,
        "## Use and limits",
        "For research on segmentation, on images similar to the training images and at "
        "their scale. Accuracy is lowest for rare classes, see the table above. The "
        "probabilities are not calibrated. Not for safety-critical use.",
        _DATA.get(config.dataset.name, "The licence of the training data applies."),
        "## Citation",
        f"```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _describe(pipeline: Pipeline) -> list[str]:
    """Describes the networks and the choices made on validation."""
    selection, (plain, title) = pipeline.selection, pipeline.titles
    chosen = [f"step size {selection.step_size:g}"]
    if first := pipeline.before:
        before = f"step size {first.step_size:g}, {first.num_iterations} iterations"
        chosen = [f"{before}, then {chosen[0]}"]
    chosen += [f"{name} {value:g}" for name, value in selection.parameters.items()]
    chosen += [f"{selection.num_iterations} iterations"]
    refiner = title.removeprefix(f"{plain} + ")
    stops = f" An image stops when the mean of |r(y) - y| is below {pipeline.stop:g}."
    return [
        f"Segments images into {len(pipeline.class_info.classes)} classes. {plain} "
        f"predicts class probabilities y; {refiner}, denoted r, refines them by "
        "iterative inference,",
        "    y  <-  clip(y + step_size * (r(y) - y), 0, 1)",
        f"with {', '.join(chosen)}, chosen on validation images."
        f"{stops if pipeline.stop else ''}",
    ]


def _format_files(files: Files) -> str:
    segmenter, refiner = files.num_parameters.values()
    described = {
        "segment_and_refine.jax": "maps images to refined probabilities",
        "refine.jax": "maps any network's probabilities to refined ones",
        "weights.safetensors": f"{segmenter:,} parameters of the segmenter, "
        f"{refiner:,} of the refiner; config, commit and selection as metadata",
    }
    rows = [
        f"| `{name}` | {described[name]} | {files.sizes[name] / 1e3:,.0f} kB |"
        for name in described
        if name in files.sizes
    ]
    return "\n".join(["| file | content | size |", "| --- | --- | ---: |", *rows])


def _format_calls(class_info: ClassInfo, files: Files) -> list[str]:
    height, width = class_info.size
    k = len(class_info.classes)
    size = f"1, {height}, {width}"
    free = f"height and width of at least {files.least} pixels"
    which = free if files.least else f"exactly {height}x{width} pixels"
    features = "".join(
        f'\n    "{name}": np.zeros({shape.shape}, np.float32),'
        for name, shape in files.features.items()
    )
    features = f"{{{features}\n}}" if features else "{}"
    images = f"images = np.zeros(({size}, 3), np.float32)  # RGB in [0, 1]"
    whole = f"""```python
{images}
segment_and_refine = read_function("segment_and_refine.jax")
y = segment_and_refine(weights, images)  # [b, h, w, {k}]
labels = y.argmax(-1)
```"""
    refine = f"""```python
{images}
probabilities = np.full(({size}, {k}), 1 / {k}, np.float32)
features = {features}
refiner = {{n: array for n, array in weights.items() if n.startswith("refiner")}}
refine = read_function("refine.jax")
y = refine(refiner, probabilities, features, images)
```"""
    sections = [f"Batches may have any number of images, with {which}."]
    if "segment_and_refine.jax" in files.sizes:
        sections.append(whole)
    reads = (
        "It reads features of the segmenter it was trained with; the shapes shown are "
        f"for {height}x{width} pixels"
        if files.features
        else "It reads no features, so y may come from any network"
    )
    return [*sections, f"The refiner alone. {reads}:", refine]


def _format_classes(class_info: ClassInfo) -> str:
    names = [*class_info.classes, "(void, never predicted)"]
    rows = [
        f"| {label} | {name} | {color[0]}, {color[1]}, {color[2]} |"
        for label, (name, color) in enumerate(
            zip(names, class_info.colors.tolist(), strict=True)
        )
    ]
    return "\n".join(
        ["| label | class | red, green, blue |", "| ---: | --- | --- |"] + rows
    )


def _format_training(config: ConfigDict, provenance: Mapping[str, Any]) -> str:
    lines = [f"- data set: `{config.dataset.name}`"]
    lines += [
        f"- {name}: `{' '.join(str(value).split())}`"
        for name, value in provenance.items()
    ]
    return "\n".join(lines)
