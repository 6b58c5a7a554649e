"""Random augmentations, each a pure function of a record and a generator."""

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import Record, format_size
from iterinf.data.external import STRIDES, find_stride
from iterinf.errors import UserError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def crop_randomly(
    record: Record, rng: np.random.Generator, size: tuple[int, int]
) -> Record:
    """Crops all arrays to the same window, drawn uniformly.

    With precomputed outputs, windows begin at multiples of the coarsest stride; the
    window of a mirrored record begins at the multiple nearest to the same pixels.
    """
    (height, width), shape = size, record.label.shape
    if height > shape[0] or width > shape[1]:
        raise UserError(
            f"crop size {height}x{width} is larger than an image of size "
            f"{format_size(record.label)}"
        )
    coarsest = find_stride(record.outputs)
    last = (shape[1] - width) // coarsest
    top = coarsest * int(rng.integers((shape[0] - height) // coarsest + 1))
    column = int(rng.integers(last + 1))
    cropped = _cut(record, top, coarsest * column, size)
    if record.mirrored is None:
        return cropped
    mirrored = _cut(record.mirrored, top, coarsest * (last - column), size)
    return cropped._replace(mirrored=mirrored)


def _cut(record: Record, top: int, left: int, size: tuple[int, int]) -> Record:
    """Crops a record's own arrays."""
    height, width = size

    def cut(array: np.ndarray, stride: int = 1) -> np.ndarray:
        rows = slice(top // stride, top // stride + height // stride)
        columns = slice(left // stride, left // stride + width // stride)
        return array[rows, columns]

    outputs = {name: cut(a, STRIDES[name]) for name, a in record.outputs.items()}
    return Record(cut(record.image), cut(record.label), record.name, outputs)


def flip_randomly(
    record: Record, rng: np.random.Generator, probability: float
) -> Record:
    """Mirrors a record left to right (or returns `mirrored`) with this probability."""
    if rng.random() >= probability:
        return record
    return mirror(record) if record.mirrored is None else record.mirrored


def mirror(record: Record) -> Record:
    """Mirrors all arrays left to right."""
    outputs = {name: array[:, ::-1] for name, array in record.outputs.items()}
    return Record(record.image[:, ::-1], record.label[:, ::-1], record.name, outputs)


def jitter_color(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Changes gamma, brightness, contrast and saturation, in this order.

    Each has its own factor 2^u with u uniform in [-strength, strength] (.25 is mild, 1
    strong, 0 the identity). The factors scale the exponent of the image in [0, 1], the
    image, its difference from its mean, and the difference of each pixel from its grey
    value. The result is clipped.
    """
    gamma, brightness, contrast, saturation = np.exp2(
        rng.uniform(-strength, strength, 4)
    ).astype(np.float32)
    scaled = brightness * (np.float32(1 / 255) * image) ** gamma
    scaled += (contrast - 1) * (scaled - scaled.mean())
    gray = (scaled @ _LUMA)[..., None]  # h w 1
    scaled += (saturation - 1) * (scaled - gray)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
