"""report.html: a self-contained page with the results of a workdir.

The results are one JSON object, drawn by page.js, charts.js and viewer.js.
"""

import base64
import html
import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from iterinf.data.dataset import Dataset
from iterinf.report.drawing import encode_jpeg
from iterinf.report.results import (
    RefinerResult,
    choose_map,
    read_boundary_curves,
    read_curves,
)
from iterinf.report.rows import Row
from iterinf.report.table import TITLES, drop_nan, format_measure
from iterinf.report.trajectories import ImageResult, pack_maps
from iterinf.runtime.distributed import print_once
from iterinf.runtime.files import write_atomically

_FOLDER = pathlib.Path(__file__).parent
_SCRIPTS = ("page.js", "charts.js", "viewer.js")


def write_page(
    path: pathlib.Path,
    dataset: Dataset,
    rows: Sequence[Row],
    refiners: Sequence[RefinerResult],
    pictures: Sequence[ImageResult],
    notes: Sequence[str],
    provenance: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    """Writes the page.

    Args:
      path: The output file.
      dataset: The data set, for its name, classes, colours and number of test images.
      rows: The rows of the table, with the segmenter alone first.
      refiners: The results of the refiners.
      pictures: The images of the viewer, which is hidden if there are none.
      notes: Sentences below the table.
      provenance: The provenance of the results.
      config: The config as plain nested dicts.
    """
    title = f"{rows[0].model} on {dataset.name}"
    document = {
        "title": title,
        "classes": dataset.classes,
        "colors": dataset.colors.tolist(),
        "rows": [_describe_row(row) for row in rows],
        "measures": [TITLES[name] for name, _ in rows[0].measures],
        "notes": notes,
        "curves": [_describe_curves(refiner) for refiner in refiners],
        "num_test": len(dataset.test),
        "pictures": [_describe_picture(picture, refiners) for picture in pictures],
        "provenance": provenance,
        "config": config,
    }
    template = string.Template((_FOLDER / "page.html").read_text())
    page = template.substitute(
        title=html.escape(title),
        style=(_FOLDER / "page.css").read_text(),
        document=_encode(document),
        script="\n".join((_FOLDER / name).read_text() for name in _SCRIPTS),
    )
    write_atomically({path: page.encode()})
    print_once(f"Report page written to {path}")


def _encode(document: Mapping[str, Any]) -> str:
    """Encodes JSON for a script element, escaping "</script>"."""
    text = json.dumps(drop_nan(document), allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c")


def _describe_row(row: Row) -> dict[str, Any]:
    """Converts a row to a dict, with measures and their intervals as text."""
    measures = [format_measure(name, found) for name, found in row.measures]
    return row._asdict() | {"measures": measures}


def _describe_curves(refiner: RefinerResult) -> dict[str, Any]:
    """Describes a refiner's choice, and its curves over iterations in per cent."""
    step_sizes, validation, test = read_curves(refiner)
    boundaries = read_boundary_curves(refiner)
    return {
        "name": refiner.name,
        "title": refiner.title,
        "step_sizes": step_sizes,
        "chosen": step_sizes.index(refiner.step_size),
        "num_iterations": refiner.num_iterations,
        "has_controls": refiner.damped_step_size is not None,
        "follows": refiner.follows,
        "validation": _list_percent(validation),
        "test": _list_percent(test),
        "boundary_f1": boundaries and [_list_percent(curve) for curve in boundaries],
    }


def _list_percent(fractions: Float[np.ndarray, "*shape"]) -> list[Any]:
    return np.round(100 * fractions, 3).tolist()


def _describe_picture(
    picture: ImageResult, refiners: Sequence[RefinerResult]
) -> dict[str, Any]:
    """Describes an image: a JPEG, packed label maps, and correct pixels gained."""
    label, segmented = picture.record.label, picture.segmented
    right = int(np.count_nonzero(segmented == label))
    gained = {
        refiner.name: int(np.count_nonzero(choose_map(picture, refiner) == label))
        - right
        for refiner in refiners
    }
    refined = {
        name: [_to_text(packed) for packed in maps]
        for name, maps in picture.refined.items()
    }
    nothing = np.zeros_like(segmented)
    jpeg = _to_text(encode_jpeg(picture.record.image))
    return {
        "name": picture.record.name,
        "height": label.shape[0],
        "width": label.shape[1],
        "image": f"data:image/jpeg;base64,{jpeg}",
        "label": _to_text(pack_maps(label[None], nothing)),
        "segmented": _to_text(pack_maps(segmented[None], nothing)),
        "refined": refined,
        "gained": gained,
    }


def _to_text(content: bytes) -> str:
    return base64.b64encode(content).decode()
