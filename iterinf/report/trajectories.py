"""Test images with their label maps through the iterations, packed to be kept.

A label map differs little from the one before it: their XOR is nearly all zeros, which
zlib makes small. The page's viewer.js unpacks the same bytes.
"""

import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import Record


class Picture(NamedTuple):
    """A test image, and what the networks make of it."""

    record: Record
    segmented: UInt8[np.ndarray, "h w"]  # by the plain network
    refined: dict[str, list[bytes]]  # by refiner and step size; from `pack_maps`


def pack_maps(
    maps: UInt8[np.ndarray, "p h w"], start: UInt8[np.ndarray, "h w"]
) -> bytes:
    """Packs successive label maps: zlib over the XOR of each with the one before.

    Args:
      maps: after 0..t iterations, p = t + 1.
      start: what the first is XORed with.
    """
    before = np.concatenate([start[None], maps[:-1]])
    return zlib.compress((maps ^ before).tobytes(), 9)


def unpack_maps(
    packed: bytes, start: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "p h w"]:
    """What `pack_maps` has packed, with the same start."""
    changes = np.frombuffer(zlib.decompress(packed), np.uint8)
    changes = changes.reshape(-1, *start.shape)
    return np.bitwise_xor.accumulate(np.concatenate([start[None], changes]))[1:]
