"""Random changes of a record, each a pure function of its arrays and a generator."""

import numpy as np
from jaxtyping import UInt8

from iterinf.data.dataset import format_size
from iterinf.errors import UserError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def crop_randomly(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    rng: np.random.Generator,
    size: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "y x 3"], UInt8[np.ndarray, "y x"]]:
    """Cuts the same window out of both, each place equally likely.

    Raises:
      UserError: if the window, (height, width), is larger than the image.
    """
    height, width = size
    if height > label.shape[0] or width > label.shape[1]:
        raise UserError(
            f"crop size {height}x{width} is larger than an image of "
            f"{format_size(label)}"
        )
    top = int(rng.integers(label.shape[0] - height + 1))
    left = int(rng.integers(label.shape[1] - width + 1))
    window = np.s_[top : top + height, left : left + width]
    return image[window], label[window]


def flip_randomly(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    rng: np.random.Generator,
    probability: float,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Mirrors both left to right, with the given probability."""
    if rng.random() < probability:
        return image[:, ::-1], label[:, ::-1]
    return image, label


def jitter_color(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Changes gamma, brightness, contrast and saturation, in this order.

    Each is changed by its own factor 2^u, u uniform in [-strength, strength]: the
    exponent of the image in [0, 1], the image, its distance to its mean, and the
    distance of each pixel to its gray. Values are clipped at the end. Strength 0
    changes nothing.

    Args:
      image: RGB.
      rng: draws the four factors.
      strength: in octaves; .25 is mild, 1 strong.
    """
    gamma, brightness, contrast, saturation = np.exp2(
        rng.uniform(-strength, strength, 4)
    ).astype(np.float32)
    scaled = brightness * (np.float32(1 / 255) * image) ** gamma
    scaled += (contrast - 1) * (scaled - scaled.mean())
    gray = (scaled @ _LUMA)[..., None]  # h w 1
    scaled += (saturation - 1) * (scaled - gray)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
