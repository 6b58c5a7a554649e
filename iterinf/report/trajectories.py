"""Compressed label maps of test images after every iteration.

Successive label maps differ little: their XOR is mostly zeros, which zlib compresses
well. The page's viewer.js unpacks the same bytes.
"""

import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import Record


class ImageResult(NamedTuple):
    """A test image with its label maps."""

    record: Record
    segmented: UInt8[np.ndarray, "h w"]  # by the segmenter alone
    refined: dict[str, list[bytes]]  # by refiner and step size; from `pack_maps`


def pack_maps(
    maps: UInt8[np.ndarray, "p h w"], start: UInt8[np.ndarray, "h w"]
) -> bytes:
    """Packs successive label maps: zlib over the XOR of each with the previous one.

    Args:
      maps: The label maps after 0..t iterations, p = t + 1.
      start: The map that the first one is XORed with.
    """
    before = np.concatenate([start[None], maps[:-1]])
    return zlib.compress((maps ^ before).tobytes())


def unpack_maps(
    packed: bytes, start: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "p h w"]:
    """Inverts `pack_maps`, with the same start."""
    changes = np.frombuffer(zlib.decompress(packed), np.uint8)
    changes = changes.reshape(-1, *start.shape)
    return np.bitwise_xor.accumulate(np.concatenate([start[None], changes]))[1:]
