"""Resizing of images and probabilities."""

from typing import Any, NamedTuple

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


class _Places(NamedTuple):
    """The neighbours of new pixels among the old ones, along one axis."""

    lower: Int[np.ndarray, "*n"]
    upper: Int[np.ndarray, "*n"]
    weight: Float[np.ndarray, "*n"]  # of the upper neighbour

    def at(self, index: Any) -> "_Places":
        """Returns the neighbours of some of the new pixels."""
        return _Places(*(values[index] for values in self))


def interpolate(
    y: Float[np.ndarray, "_ _ k"], size: Size
) -> Float[np.ndarray, "h w k"]:
    """Interpolates bilinearly between pixel centres, and constantly at the border."""
    rows, columns = map(_find_places, y.shape[:2], size)
    return _interpolate(y, rows.at(np.s_[:, None]), columns)


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
    labels, *others = (
        classes[np.ix_(row, column)] for row in rows[:2] for column in columns[:2]
    )
    row, column = np.nonzero(np.any([labels != other for other in others], axis=0))
    count = max(1, _AT_A_TIME // y.shape[2])
    for first in range(0, len(row), count):
        i, j = row[first : first + count], column[first : first + count]
        mixed = _interpolate(y, rows.at(i), columns.at(j))
        labels[i, j] = mixed.argmax(axis=-1)
    return labels


def _find_places(old: int, new: int) -> _Places:
    """Finds the neighbours of all pixels of a new size."""
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    lower = places.astype(int)
    upper = np.minimum(lower + 1, old - 1)
    return _Places(lower, upper, (places - lower).astype(np.float32))


def _interpolate(
    y: Float[np.ndarray, "_ _ k"], rows: _Places, columns: _Places
) -> Float[np.ndarray, "*n k"]:
    """Interpolates y at points whose rows and columns broadcast to the shape n."""
    left, right = (
        _mix(y[rows.lower, column], y[rows.upper, column], rows.weight)
        for column in (columns.lower, columns.upper)
    )
    return _mix(left, right, columns.weight)


def _mix(
    lower: Float[np.ndarray, "*n k"],
    upper: Float[np.ndarray, "*n k"],
    weight: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "*n k"]:
    """Computes (1 - weight) * lower + weight * upper in place of `upper`."""
    upper -= lower
    upper *= weight[..., None]
    upper += lower
    return upper
