"""Resizing of images and probabilities."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

Size = tuple[int, int]  # height, width

_AT_A_TIME = 2**22  # interpolated values held in memory


def resize_image(
    image: UInt8[np.ndarray, "_ _ 3"], size: Size
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image like `resize_channels`."""
    return np.array(_resize(Image.fromarray(image), size))


def resize_channels(
    array: Float[np.ndarray, "_ _ c"], size: Size
) -> Float[np.ndarray, "h w c"]:
    """Resizes an array channel by channel.

    Upsampling is bilinear. Downsampling averages squares by the integer part of the
    factor, like the data sets' `scale`, and is bilinear for the rest.

    Args:
      array: The values, in any floating-point type.
      size: The new height and width.

    Returns:
      The resized array in float32. Sums over channels of one are kept up to rounding.
    """
    channels = np.moveaxis(array, -1, 0)
    resized = [
        np.asarray(_resize(Image.fromarray(channel.astype(np.float32)), size))
        for channel in channels
    ]
    return np.stack(resized, axis=-1)


def _resize(image: Image.Image, size: Size) -> Image.Image:
    linear = Image.Resampling.BILINEAR
    return image.resize((size[1], size[0]), linear, reducing_gap=1.0)


def interpolate(
    y: Float[np.ndarray, "_ _ k"], size: Size
) -> Float[np.ndarray, "h w k"]:
    """Interpolates bilinearly between pixel centres, and constantly at the border.

    Args:
      y: The class probabilities.
      size: The new height and width.
    """
    rows, columns = map(_find_places, y.shape[:2], size)
    y = _mix(y.take(rows.lower, 0), y.take(rows.upper, 0), rows.weight[:, None, None])
    return _mix(
        y.take(columns.lower, 1), y.take(columns.upper, 1), columns.weight[:, None]
    )


def find_labels(y: Float[np.ndarray, "_ _ k"], size: Size) -> UInt8[np.ndarray, "h w"]:
    """Computes the label map at another size, the argmax of `interpolate`.

    Between four pixels of the same class the argmax is that class. Only the other
    pixels are interpolated, in parts, since a 12-megapixel image with 150 classes would
    take 7 GB.

    Args:
      y: The probabilities of at most 256 classes.
      size: The new height and width.
    """
    rows, columns = map(_find_places, y.shape[:2], size)
    classes = y.argmax(axis=-1).astype(np.uint8)
    upper, lower = (classes[places] for places in (rows.lower, rows.upper))
    labels = upper[:, columns.lower]
    open_pixels = labels != upper[:, columns.upper]
    open_pixels |= labels != lower[:, columns.lower]
    open_pixels |= labels != lower[:, columns.upper]
    count = max(1, _AT_A_TIME // (size[1] * y.shape[2]))
    for top in range(0, size[0], count):
        band = _Places(*(values[top : top + count] for values in rows))
        row, column = np.nonzero(open_pixels[top : top + count])
        points = _Places(*(values[row] for values in band))
        others = _Places(*(values[column] for values in columns))
        mixed = _interpolate_points(y, points, others)
        labels[top : top + count][row, column] = mixed.argmax(axis=-1)
    return labels


class _Places(NamedTuple):
    """The neighbours of new pixels among the old ones, along one axis."""

    lower: Int[np.ndarray, " n"]
    upper: Int[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]  # of the upper neighbour


def _find_places(old: int, new: int) -> _Places:
    """Finds the neighbours of all pixels of a new size."""
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    lower = places.astype(int)
    upper = np.minimum(lower + 1, old - 1)
    return _Places(lower, upper, (places - lower).astype(np.float32))


def _interpolate_points(
    y: Float[np.ndarray, "_ _ k"], rows: _Places, columns: _Places
) -> Float[np.ndarray, "n k"]:
    """Interpolates y at n points."""
    flat = y.reshape(-1, y.shape[2])
    left, right = (
        _mix(
            flat.take(rows.lower * y.shape[1] + column, 0),
            flat.take(rows.upper * y.shape[1] + column, 0),
            rows.weight[:, None],
        )
        for column in (columns.lower, columns.upper)
    )
    return _mix(left, right, columns.weight[:, None])


def _mix(
    lower: Float[np.ndarray, "*shape"],
    upper: Float[np.ndarray, "*shape"],
    weight: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "*shape"]:
    """Computes (1 - weight) * lower + weight * upper in place of `upper`."""
    upper -= lower
    upper *= weight
    upper += lower
    return upper
