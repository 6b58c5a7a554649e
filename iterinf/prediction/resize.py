"""Pictures and probabilities at another size, over the same area."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

Size = tuple[int, int]  # height, width

_AT_A_TIME = 2**22  # numbers that are interpolated


def resize_image(
    image: UInt8[np.ndarray, "_ _ 3"], size: Size
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image as `resize_channels` does."""
    return np.array(_resize(Image.fromarray(image), size))


def resize_channels(
    array: Float[np.ndarray, "_ _ c"], size: Size
) -> Float[np.ndarray, "h w c"]:
    """Resizes channel by channel.

    What grows is interpolated linearly. What shrinks is averaged: over squares by the
    whole part of the factor, as the data sets' `scale` does, then linearly by the rest.

    Args:
      array: any values, in any floating-point type.
      size: the new height and width.

    Returns:
      In float32. Channels that summed to one everywhere still do, up to rounding.
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
    """Interpolates linearly between the centres of pixels; constant beyond the last.

    Args:
      y: probabilities of the classes.
      size: the new height and width.
    """
    rows, columns = map(_find_places, y.shape[:2], size)
    y = _mix(y.take(rows.lower, 0), y.take(rows.upper, 0), rows.weight[:, None, None])
    return _mix(
        y.take(columns.lower, 1), y.take(columns.upper, 1), columns.weight[:, None]
    )


def find_labels(y: Float[np.ndarray, "_ _ k"], size: Size) -> UInt8[np.ndarray, "h w"]:
    """The likeliest class of every pixel at another size: the argmax of `interpolate`.

    Between four pixels of one class is nothing but that class, for what is largest in
    all of them is so in their means. The others are interpolated some at a time: a
    picture of 12 megapixels with 150 classes would take 7 GB.

    Args:
      y: probabilities of at most 256 classes.
      size: the new height and width.
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
    """Where pixels lie between those of another size, along one axis."""

    lower: Int[np.ndarray, " n"]  # neighbours
    upper: Int[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]  # of the upper


def _find_places(old: int, new: int) -> _Places:
    """Of all pixels of a new size."""
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
    """(1 - weight) lower + weight upper, in the place of `upper`."""
    upper -= lower
    upper *= weight
    upper += lower
    return upper
