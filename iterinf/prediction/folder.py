"""--mode=predict: predictions of a finished workdir on image files."""

import contextlib
import glob
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from iterinf.data.external import Outputs, find_file, read_outputs
from iterinf.data.image_io import read_image, read_size
from iterinf.errors import UserError
from iterinf.prediction.pipeline import read_pipeline
from iterinf.prediction.predictor import (
    Prediction,
    Predictor,
    PreparedImage,
    check_finite,
)
from iterinf.prediction.resize import Size
from iterinf.report.drawing import (
    draw_legend,
    encode_animation,
    encode_jpeg,
    encode_label_map,
    encode_png_fast,
    overlay,
    paint_changes,
    place_side_by_side,
)
from iterinf.runtime.bars import create_bar
from iterinf.runtime.distributed import is_first, print_once
from iterinf.runtime.files import write_atomically

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_KINDS = ("labels", "overlays", "before_after", "changes", "trajectories")
_PANEL_WIDTH = 1000


def predict_files(
    workdir: Path,
    *,
    images: str,
    output: str,
    scale: float | None = None,
    refiner: str = "",
    batch_size: int = 4,
    trajectory: bool = False,
    probabilities: str = "",
    show_progress: bool = True,
) -> None:
    """Predicts images and writes the files listed in docs/predict.md.

    The workdir is only read. The options are those of `config.predict`, see
    configs/base.py.

    Raises:
      UserError: If no image can be predicted; or at the end, if some images failed:
        each failure is printed to stderr, and the other images are written.
    """
    for key, value in (("images", images), ("output", output)):
        if not value:
            raise UserError(f"--mode=predict needs --config.predict.{key}")
    if scale is not None and not scale > 0:
        raise UserError(f"config.predict.scale is {scale}, expected a number > 0")
    if batch_size < 1:
        raise UserError(
            f"config.predict.batch_size is {batch_size}, expected an integer >= 1"
        )
    names = find_images(images)
    folder = Path(output)
    predictor = Predictor(read_pipeline(workdir, refiner or None), scale)
    _check_probabilities(probabilities, predictor, workdir)
    legend = _draw_legend(folder, predictor)
    _protect(names, folder, legend)
    failures = []
    with create_bar("predict", len(names), "image", show=show_progress) as bar:

        def complain(error: UserError) -> None:
            failures.append(error)
            bar.update()
            if is_first():
                bar.write(f"iterinf: {error}", file=sys.stderr)

        predictions = predictor.predict_all(
            _prepare_all(predictor, names, probabilities, complain),
            batch_size=batch_size,
            trajectory=trajectory,
        )
        for prediction in predictions:
            try:
                check_finite(prediction)
            except UserError as error:
                complain(error)
                continue
            name = names[Path(prediction.prepared.name)]
            files = _draw(folder, name, prediction, predictor.colors)
            write_atomically(legend | files)
            legend = {}
            bar.update()
    print_once(f"{len(names) - len(failures)} of {len(names)} images: see {output}")
    if failures:
        count = f"{len(failures)} of {len(names)} images"
        raise UserError(f"{count} could not be predicted, see the errors above")


def _prepare_all(
    predictor: Predictor,
    names: Mapping[Path, str],
    probabilities: str,
    complain: Callable[[UserError], None],
) -> Iterator[PreparedImage]:
    """Reads images, grouped by their size at the networks' scale."""

    def find_size(path: Path) -> Size:
        with contextlib.suppress(UserError):  # reading the image raises it again
            return predictor.choose_size(read_size(path))
        return 0, 0

    for path in sorted(names, key=find_size):
        try:
            outputs: Outputs = {}
            if probabilities:
                outputs = read_outputs(find_file(Path(probabilities), names[path]))
            image = read_image(path, upright=True)
            prepared = predictor.prepare(image, outputs, str(path))
        except UserError as error:
            complain(error)
        else:
            yield prepared


def find_images(images: str) -> dict[Path, str]:
    """Finds images and names each by its path below their common parent.

    Args:
      images: An image, a folder of images, or a glob pattern; `**` matches any folders.

    Returns:
      The names by path, sorted.

    Raises:
      UserError: If there are no images, or two differ only in extension.
    """
    if Path(images).is_dir():
        found = [p for p in Path(images).iterdir() if p.suffix.lower() in _SUFFIXES]
        found = [path for path in found if not path.name.startswith(".")]
    elif Path(images).is_file():  # also where its name looks like a pattern
        found = [Path(images)]
    else:
        found = [Path(path) for path in glob.glob(images, recursive=True)]
    paths = sorted(path for path in found if path.is_file())
    if not paths:
        raise UserError(f"config.predict.images is {images!r}, which matches no image")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names = {path: str(path.relative_to(root).with_suffix("")) for path in paths}
    for one, other in itertools.pairwise(sorted(paths, key=lambda p: names[p])):
        if names[one] == names[other]:
            raise UserError(f"{one} and {other} differ only in extension; rename one")
    return names


def _check_probabilities(
    probabilities: str, predictor: Predictor, workdir: Path
) -> None:
    if probabilities and not Path(probabilities).is_dir():
        raise UserError(
            f"config.predict.probabilities is {probabilities!r}, which is not a folder"
        )
    if predictor.outputs and not probabilities:
        raise UserError(
            f"the segmenter of {workdir} is precomputed; set "
            "config.predict.probabilities to the folder of its outputs"
        )


def _protect(paths: Iterable[Path], folder: Path, legend: Mapping[Path, bytes]) -> None:
    """Raises UserError if results would overwrite foreign files."""
    path = folder / "classes.json"
    if path.exists() and path.read_bytes() != legend[path]:
        raise UserError(
            f"{path} exists with different classes; choose another folder as "
            "config.predict.output"
        )
    for path, kind in itertools.product(paths, _KINDS):
        if path.resolve().is_relative_to((folder / kind).resolve()):
            raise UserError(
                f"input {path} is in the output folder {folder}; choose another folder "
                "as config.predict.output"
            )


def _draw_legend(folder: Path, predictor: Predictor) -> dict[Path, bytes]:
    """Creates the files with the ids, names and colours of the classes."""
    colors = predictor.colors.tolist()
    classes = [
        {"name": name, "color": color}
        for name, color in zip(predictor.classes, colors, strict=False)
    ]
    content = {"classes": classes, "void_id": 255, "void_color": colors[-1]}
    legend = draw_legend(predictor.classes, predictor.colors)
    return {
        folder / "classes.json": (json.dumps(content, indent=2) + "\n").encode(),
        folder / "legend.png": encode_png_fast(legend),
    }


def _draw(
    folder: Path, name: str, prediction: Prediction, colors: UInt8[np.ndarray, "_ 3"]
) -> dict[Path, bytes]:
    """Creates all files of an image."""
    image = prediction.prepared.image
    before, after = prediction.initial_labels, prediction.labels
    panels = place_side_by_side(image, (before, after), colors, width=_PANEL_WIDTH)
    changes = paint_changes(image, before, after, colors)
    files = {
        folder / "labels" / f"{name}.png": encode_label_map(after, colors),
        folder / "overlays" / f"{name}.jpg": encode_jpeg(overlay(image, after, colors)),
        folder / "before_after" / f"{name}.png": encode_png_fast(panels),
        folder / "changes" / f"{name}.png": encode_png_fast(changes),
    }
    if prediction.trajectory is not None:
        target = folder / "trajectories" / name
        animation = encode_animation(prediction.trajectory, colors)
        files[target.with_name(f"{target.name}.gif")] = animation
        for i, labels in enumerate(prediction.trajectory):
            files[target / f"{i:03}.png"] = encode_label_map(labels, colors)
    return files
