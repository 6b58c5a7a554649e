"""A model card: what exported networks are, how to load them, and what they reach."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from iterinf.errors import UserError
from iterinf.prediction.pipeline import Legend, Pipeline
from iterinf.report.results import SUFFIXES

_DATA = {
    "camvid": "Trained on CamVid, which is CC BY-NC 4.0: not for commercial use. Its "
    "training images are frames of three drives through Cambridge by day; other towns, "
    "weathers and cameras were never seen.",
    "streets": "Trained on drawings of streets that a program generates: it has never "
    "seen a photograph, and is a demonstration.",
    "folder": "Trained on images of its owner: their licence holds for what was "
    "learned from them, and must be said here by whoever shares this.",
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
    """What a table says of one refiner."""

    lines: Sequence[str]  # of the table in Markdown: header, rule, rows
    notes: Sequence[str]
    provenance: Mapping[str, Any]


class Files(NamedTuple):
    """What else the card says of the files beside it."""

    sizes: dict[str, int]  # bytes by name
    num_parameters: dict[str, int]  # of "segmenter" and "refiner"
    features: dict[str, Any]  # shapes that refine.jax reads for one training image
    least: int | None  # height and width of images; None: those of training alone


def read_results(
    workdir: pathlib.Path, titles: tuple[str, str], *others: str
) -> Results:
    """Reads the rows of a segmenter and of a refiner from a workdir's table.

    Args:
      workdir: of a finished experiment.
      titles: of both, as in the table.
      *others: titles of further networks whose training is described.

    Raises:
      UserError: if there is no table, or no such rows.
    """
    folder = workdir / "results"
    try:
        document = json.loads((folder / "table.json").read_text())
        lines = (folder / "table.md").read_text().splitlines()
    except OSError as error:
        raise UserError(
            f"there is no table in {folder} for the model card; run --mode=report first"
        ) from error
    plain, refined = titles
    models = [row["model"] for row in document["rows"]]
    if refined not in models:
        raise UserError(f"the table in {folder} has no {refined}; run --mode=report")
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
    """Writes the card as Markdown; its Python runs where it lies, with JAX alone."""
    sections = [
        f"# {pipeline.titles[1]}",
        *_describe(pipeline),
        "## Files",
        _format_files(files),
        "## Use",
        f'With `pip install "jax>={jax.__version__}" flatbuffers` (versions of the six '
        "months after it run these programs), on CPU, CUDA or TPU:",
        f"```python\n{_READER}\n```",
        *_format_calls(pipeline.legend, files),
        "## Classes",
        _format_classes(pipeline.legend),
        "## Training",
        _format_training(config, results.provenance),
        "## Results",
        "\n".join(results.lines),
        "All in per cent, on test images that no choice was made on. `gain` is the "
        "difference in mean IoU to the first row, in points, with its 95% paired "
        "interval `gain_low` to `gain_high`. It covers images, not training seeds.",
        *results.notes,
        "## Use and limits",
        "For research on segmentation, on images like those it was trained on, at "
        "their scale. Rare classes are the worst: see their columns above. The "
        "probabilities are not calibrated. Nothing that people's safety depends on "
        "may rest on it.",
        _DATA.get(config.dataset.name, "The licence of the training data applies."),
        "## Citation",
        f"```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _describe(pipeline: Pipeline) -> list[str]:
    """What the networks do, and how validation has it done."""
    selection, (plain, title) = pipeline.selection, pipeline.titles
    chosen = [f"step size {selection.step_size:g}"]
    if first := pipeline.before:
        before = f"step size {first.step_size:g}, {first.num_iterations} iterations"
        chosen = [f"{before}, then {chosen[0]}"]
    chosen += [f"{name} {value:g}" for name, value in selection.parameters.items()]
    chosen += [f"{selection.num_iterations} iterations"]
    refiner = title.removeprefix(f"{plain} + ")
    stops = f" An image stops once |r(y) - y| is {pipeline.stop:g} on average."
    return [
        f"Says which of {len(pipeline.legend.classes)} classes every pixel of an image "
        f"shows. {plain} proposes probabilities y; {refiner}, as r, then improves them "
        "by iterative inference,",
        "    y  <-  clip(y + step_size * (r(y) - y), 0, 1)",
        f"with {', '.join(chosen)}, as chosen on validation images."
        f"{stops if pipeline.stop else ''}",
    ]


def _format_files(files: Files) -> str:
    segmenter, refiner = files.num_parameters.values()
    described = {
        "segment_and_refine.jax": "images to refined probabilities",
        "refine.jax": "probabilities of any network to refined ones",
        "weights.safetensors": f"{segmenter:,} parameters of the segmenter, "
        f"{refiner:,} of the refiner; config, commit and choice as metadata",
    }
    rows = [
        f"| `{name}` | {described[name]} | {files.sizes[name] / 1e3:,.0f} kB |"
        for name in described
        if name in files.sizes
    ]
    return "\n".join(["| file | what | size |", "| --- | --- | ---: |", *rows])


def _format_calls(legend: Legend, files: Files) -> list[str]:
    height, width = legend.size
    k = len(legend.classes)
    size = f"1, {height}, {width}"
    free = f"any height and width from {files.least} pixels on"
    which = free if files.least else f"{height}x{width} pixels, no other size"
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
    sections = [f"Batches of any number of images, of {which}."]
    if "segment_and_refine.jax" in files.sizes:
        sections.append(whole)
    reads = (
        "It reads features of the network it was trained with, in the shapes shown "
        f"for {height}x{width} pixels"
        if files.features
        else "It reads no features, so y may come from any network"
    )
    return [*sections, f"The refiner alone. {reads}:", refine]


def _format_classes(legend: Legend) -> str:
    names = [*legend.classes, "(void, never predicted)"]
    rows = [
        f"| {label} | {name} | {color[0]}, {color[1]}, {color[2]} |"
        for label, (name, color) in enumerate(
            zip(names, legend.colors.tolist(), strict=True)
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
