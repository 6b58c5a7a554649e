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

from iterinf.report.curves import join_curves
from iterinf.report.drawing import encode_jpeg
from iterinf.report.results import RefinerResult, Report, choose_map
from iterinf.report.table import TITLES, drop_nan, format_measure
from iterinf.report.trajectories import ImageResult, pack_maps
from iterinf.runtime.distributed import print_once
from iterinf.runtime.files import write_atomically

_FOLDER = pathlib.Path(__file__).parent
_SCRIPTS = ("page.js", "charts.js", "viewer.js")


def write_page(report: Report, path: pathlib.Path) -> None:
    """Writes the page; it has no viewer if the report has no images for it."""
    rows, refiners, dataset = report.rows, report.refiners, report.dataset
    title = f"{rows[0].model} on {dataset.name}"
    document = {
        "title": title,
        "classes": dataset.classes,
        "colors": dataset.colors.tolist(),
        "rows": [
            row._asdict() | {"measures": [format_measure(*m) for m in row.measures]}
            for row in rows
        ],
        "measures": [TITLES[name] for name, _ in rows[0].measures],
        "notes": report.notes,
        "curves": [_describe_curves(refiner) for refiner in refiners],
        "num_test": len(dataset.test),
        "images": [_describe_image(image, refiners) for image in report.page_images],
        "provenance": report.provenance,
        "config": report.config,
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


def _describe_curves(refiner: RefinerResult) -> dict[str, Any]:
    """Describes a refiner's choice, and its curves over iterations in per cent."""
    curves = join_curves(refiner.curve, refiner.test)
    lines = {
        name: [np.round(100 * part[name], 3).tolist() for part in curves]
        for name in curves.validation
    }
    return {
        "name": refiner.name,
        "title": refiner.title,
        "step_sizes": refiner.step_sizes,
        "chosen": refiner.step_sizes.index(refiner.step_size),
        "num_iterations": refiner.num_iterations,
        "has_controls": refiner.damped_step_size is not None,
        "follows": refiner.follows,
        "validation": lines["mean_iou"][0],
        "test": lines["mean_iou"][1],
        "boundary_f1": lines.get("boundary_f1"),
    }


def _describe_image(
    image: ImageResult, refiners: Sequence[RefinerResult]
) -> dict[str, Any]:
    """Describes an image: a JPEG, packed label maps, and correct pixels gained."""
    (photo, label, name, *_), segmented = image.record, image.segmented
    right = int(np.count_nonzero(segmented == label))
    gained = {
        refiner.name: int(np.count_nonzero(choose_map(image, refiner) == label)) - right
        for refiner in refiners
    }
    nothing = np.zeros_like(segmented)
    return {
        "name": name,
        "height": label.shape[0],
        "width": label.shape[1],
        "photo": f"data:image/jpeg;base64,{_to_text(encode_jpeg(photo))}",
        "label": _to_text(pack_maps(label[None], nothing)),
        "segmented": _to_text(pack_maps(segmented[None], nothing)),
        "refined": {k: list(map(_to_text, maps)) for k, maps in image.refined.items()},
        "gained": gained,
    }


def _to_text(content: bytes) -> str:
    return base64.b64encode(content).decode()
