"""Reading and writing the image files of the data sets."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from iterinf.errors import UserError


def _read_pixels(path: Path) -> Image.Image:
    """Opens and decodes an image file, or names it in a UserError."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    # Pillow tells of a broken PNG by a SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as an image, it may be truncated ({error})"
        ) from error


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as RGB; a gray one gets three equal channels.

    Raises:
      UserError: if the file cannot be decoded or has more than 8 bits a channel.
    """
    image = _read_pixels(path)
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path} has more than 8 bits a channel, expected 8")
    return np.array(image.convert("RGB"))


def read_label(path: Path) -> Integer[np.ndarray, "h w"]:
    """Reads a label map: the gray values, or the indices of a palette image.

    Raises:
      UserError: if the file cannot be decoded or has more than one channel.
    """
    image = _read_pixels(path)
    if len(image.getbands()) != 1:
        raise UserError(
            f"{path} has {len(image.getbands())} channels ({image.mode}), "
            "expected one that holds the class ids"
        )
    label = np.array(image)
    return label.astype(np.uint8) if label.dtype == bool else label


def encode_png(array: UInt8[np.ndarray, "..."]) -> bytes:
    """Encodes an [h w] or [h w 3] array as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()
