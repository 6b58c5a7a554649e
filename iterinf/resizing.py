"""Pictures and probabilities at another size, over the same area."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

Size = tuple[int, int]  # height, width

_BAND = 2**22  # numbers that are interpolated at a time


def resize_image(
    image: UInt8[np.ndarray, "_ _ 3"], size: Size
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image as `resize_channels` does."""
    return np.array(_resize(Image.fromarray(image), size))


def resize_channels(
    array: Float[np.ndarray, "_ _ c"], size: Size
) -> Float[np.ndarray, "h w c"]:
    """Resizes channel by channel.

    What shrinks becomes the mean over the area of each new pixel (by a whole factor:
    what the data sets' `scale` makes of an image), what grows is interpolated linearly.

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
    height, width = size
    smaller = (min(width, image.width), min(height, image.height))
    box, linear = Image.Resampling.BOX, Image.Resampling.BILINEAR
    return image.resize(smaller, box, reducing_gap=1.0).resize((width, height), linear)


def interpolate(
    y: Float[np.ndarray, "_ _ k"], size: Size
) -> Float[np.ndarray, "h w k"]:
    """Interpolates linearly between the centres of pixels; constant beyond the last.

    Args:
      y: probabilities of the classes.
      size: the new height and width.
    """
    return np.concatenate(list(_interpolate_bands(y, size)))


def find_labels(y: Float[np.ndarray, "_ _ k"], size: Size) -> UInt8[np.ndarray, "h w"]:
    """The likeliest class of every pixel at another size.

    The argmax of `interpolate`, which is never held whole: a picture of 12 megapixels
    with 150 classes would take 7 GB.

    Args:
      y: probabilities of at most 256 classes.
      size: the new height and width.
    """
    bands = _interpolate_bands(y, size)
    return np.concatenate([band.argmax(axis=-1).astype(np.uint8) for band in bands])


class _Places(NamedTuple):
    """Where the pixels of a new length lie between those of an old one."""

    lower: Int[np.ndarray, " n"]  # neighbours
    upper: Int[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]  # of the upper


def _find_places(old: int, new: int) -> _Places:
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    places = np.clip(places, 0, old - 1)
    lower = places.astype(int)
    return _Places(
        lower, np.minimum(lower + 1, old - 1), (places - lower).astype(np.float32)
    )


def _mix(
    y: Float[np.ndarray, "_ _ k"], places: _Places, axis: int
) -> Float[np.ndarray, "_ _ k"]:
    weight = np.expand_dims(places.weight, (1 - axis, 2))
    mixed = y.take(places.upper, axis)
    lower = y.take(places.lower, axis)
    mixed -= lower
    mixed *= weight
    mixed += lower
    return mixed


def _interpolate_bands(
    y: Float[np.ndarray, "_ _ k"], size: Size
) -> Iterator[Float[np.ndarray, "_ w k"]]:
    """Some rows at a time, from top to bottom."""
    height, width = size
    rows, columns = _find_places(y.shape[0], height), _find_places(y.shape[1], width)
    count = max(1, _BAND // (width * y.shape[2]))
    for top in range(0, height, count):
        part = _Places(*(values[top : top + count] for values in rows))
        yield _mix(_mix(y, part, 0), columns, 1)
