"""Reading and writing of image files."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps

from iterinf.errors import UserError

_ORIENTATION = 0x0112  # EXIF tag; values from 5 on exchange height and width


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Opens an image file; decoder errors become a UserError."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    # Pillow raises SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def _read_pixels(path: Path, *, upright: bool = False) -> Image.Image:
    """Decodes an image file."""
    with _open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image) if upright else image


def read_size(path: Path) -> tuple[int, int]:
    """Reads the height and width of an image after its EXIF orientation is applied.

    Raises:
      UserError: If the file is not an image.
    """
    with _open(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return image.size if turned else image.size[::-1]


def read_image(path: Path, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as RGB, with its EXIF orientation applied if `upright`.

    Raises:
      UserError: If the file cannot be decoded or has more than 8 bits per channel.
    """
    image = _read_pixels(path, upright=upright)
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path} has more than 8 bits per channel, expected 8")
    return np.array(image.convert("RGB"))


def read_label(path: Path) -> Integer[np.ndarray, "h w"]:
    """Reads a label map: the grey values, or the indices of a palette image.

    Raises:
      UserError: If the file cannot be decoded or has more than one channel.
    """
    image = _read_pixels(path)
    if len(image.getbands()) != 1:
        raise UserError(
            f"{path} has {len(image.getbands())} channels ({image.mode}), "
            "expected 1 (class ids)"
        )
    label = np.array(image)
    return label.astype(np.uint8) if label.dtype == bool else label


def encode_png(array: UInt8[np.ndarray, "..."]) -> bytes:
    """Encodes an [h w] or [h w 3] array as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()
