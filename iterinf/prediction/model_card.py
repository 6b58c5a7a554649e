"""The model card of exported networks: description, usage and results."""

import json
import pathlib
import string
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from iterinf.errors import UserError
from iterinf.prediction.pipeline import Pipeline
from iterinf.report.results import SUFFIXES
from iterinf.report.table import format_markdown_lines, format_provenance
from iterinf.training.objectives import Variables
from iterinf.workdir import ClassInfo

_TEMPLATE = pathlib.Path(__file__).with_name("model_card.md")

_DATA = {
    "camvid": "Trained on CamVid, which is CC BY-NC 4.0: not for commercial use. Its "
    "training images are frames of three daytime drives through Cambridge; other "
    "towns, weather and cameras are out of distribution.",
    "streets": "Trained on synthetic drawings of streets only, not on photographs: a "
    "demonstration.",
    "folder": "Trained on private images: state their licence, which also covers these "
    "weights, here before sharing them.",
}

_WHOLE = """```python
images = np.zeros(($shape, 3), np.float32)  # RGB in [0, 1]
segment_and_refine = read_function("segment_and_refine.jax")
y = segment_and_refine(weights, images)  # [b, h, w, $num_classes]
labels = y.argmax(-1)
```

"""


class Results(NamedTuple):
    """The results of one refiner."""

    table: str  # Markdown
    notes: list[str]
    provenance: dict[str, Any]


def read_results(
    workdir: pathlib.Path, titles: tuple[str, str], *others: str
) -> Results:
    """Reads the rows of a segmenter and a refiner from a workdir's table.

    The provenance includes that of these two and of `others`, given by title.

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
    shown = {plain, *(refined + suffix for suffix in SUFFIXES.values())}
    rows = zip(models, lines[2:], strict=False)
    described = {"command", "commit", "hardware", "versions", "seed", plain, *others}
    described.add(refined.removeprefix(f"{plain} + "))
    return Results(
        "\n".join([*lines[:2], *(line for model, line in rows if model in shown)]),
        [note for note in document["notes"] if note.startswith(f"{refined} ")],
        {k: v for k, v in document["provenance"].items() if k in described},
    )


def format_card(
    pipeline: Pipeline,
    config: ConfigDict,
    results: Results,
    contents: Mapping[str, bytes],
    features: Mapping[str, jax.ShapeDtypeStruct],
    least: int | None,
) -> str:
    """Formats the card as Markdown; its code needs only JAX and the card's folder.

    Args:
      pipeline: The exported networks.
      config: The config of the workdir.
      results: The results of the refiner.
      contents: The exported files by name.
      features: The features that refine.jax reads for one training image.
      least: The minimum height and width of images; None: the training size only.
    """
    class_info, (plain, title) = pipeline.class_info, pipeline.titles
    height, width = class_info.size
    values = {
        "title": title,
        "num_classes": len(class_info.classes),
        "segmenter": plain,
        "refiner": title.removeprefix(f"{plain} + "),
        "choice": _describe_choice(pipeline),
        "files": _format_files(pipeline, contents),
        "jax": jax.__version__,
        "shape": f"1, {height}, {width}",
        "sizes": f"height and width of at least {least} pixels"
        if least
        else f"exactly {height}x{width} pixels",
        "features": "".join(
            f'\n    "{name}": np.zeros({shape.shape}, np.float32),'
            for name, shape in features.items()
        )
        + ("\n" if features else ""),
        "reads": "features of the segmenter it was trained with; the shapes shown are "
        f"for {height}x{width} pixels"
        if features
        else "no features, so y may come from any network",
        "classes": _format_classes(class_info),
        "training": format_provenance(
            {"data set": config.dataset.name} | results.provenance
        ),
        "table": results.table,
        "notes": "\n\n".join(results.notes),
        "data": _DATA.get(
            config.dataset.name, "The licence of the training data applies."
        ),
    }
    has_whole = "segment_and_refine.jax" in contents
    values["whole"] = string.Template(_WHOLE).substitute(values) if has_whole else ""
    return string.Template(_TEMPLATE.read_text()).substitute(values)


def _describe_choice(pipeline: Pipeline) -> str:
    """Describes the choices made on validation."""
    selection = pipeline.selection
    chosen = [f"step size {selection.step_size:g}"]
    if first := pipeline.before:
        before = f"step size {first.step_size:g}, {first.num_iterations} iterations"
        chosen = [f"{before}, then {chosen[0]}"]
    chosen += [f"{name} {value:g}" for name, value in selection.parameters.items()]
    chosen += [f"{selection.num_iterations} iterations"]
    stops = f". An image stops when the mean of |r(y) - y| is below {pipeline.stop:g}"
    text = f"{', '.join(chosen)}, chosen on validation images"
    return text + (stops if pipeline.stop else "")


def _format_files(pipeline: Pipeline, contents: Mapping[str, bytes]) -> str:
    networks = dict(pipeline.networks)
    segmenter = _count_parameters([networks.pop("segmenter")])
    described = {
        "segment_and_refine.jax": "maps images to refined probabilities",
        "refine.jax": "maps any network's probabilities to refined ones",
        "weights.safetensors": f"{segmenter:,} parameters of the segmenter, "
        f"{_count_parameters(networks.values()):,} of the refiner; config, commit and "
        "selection as metadata",
    }
    lines = [["file", "content", "size"], ["---", "---", "---:"]]
    for name, text in described.items():
        if name in contents:
            size = f"{len(contents[name]) / 1e3:,.0f} kB"
            lines.append([f"`{name}`", text, size])
    return format_markdown_lines(lines)


def _count_parameters(networks: Iterable[Variables]) -> int:
    params = [variables.get("params", {}) for variables in networks]
    return sum(array.size for array in jax.tree.leaves(params))


def _format_classes(class_info: ClassInfo) -> str:
    lines = [["label", "class", "red, green, blue"], ["---:", "---", "---"]]
    names = [*class_info.classes, "(void, never predicted)"]
    colors = class_info.colors.tolist()
    for label, (name, color) in enumerate(zip(names, colors, strict=True)):
        lines.append([str(label), name, ", ".join(map(str, color))])
    return format_markdown_lines(lines)
