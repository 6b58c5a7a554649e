"""Painting of predictions, and encoding as image files."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Labels = UInt8[np.ndarray, "h w"]
Pixels = UInt8[np.ndarray, "h w 3"]
Colors = UInt8[np.ndarray, "colors 3"]  # RGB per class

_GAP = 8  # white columns between panels
_LINE = 32  # height of a legend entry, in pixels
_LEAST_WIDTH = 480  # minimum width of an animation, reached by repeating pixels
_MILLISECONDS = 150  # per frame
_LAST_MILLISECONDS = 1500


def dim(image: Pixels) -> Pixels:
    """Converts the image to grey at half its brightness."""
    grey = (image.sum(axis=-1, dtype=np.uint16) // 6).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def overlay(image: Pixels, labels: Labels, colors: Colors) -> Pixels:
    """Averages the image and the colours of its classes."""
    return image // 2 + colors[labels] // 2


def paint_changes(
    image: Pixels, before: Labels, after: Labels, colors: Colors
) -> Pixels:
    """Paints changed pixels in the colour of their new class, and the rest dim grey."""
    return np.where((before != after)[..., None], colors[after], dim(image))


def place_side_by_side(
    image: Pixels, label_maps: Sequence[Labels], colors: Colors, *, width: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Places the image and its label maps side by side, each at most `width` wide."""
    full_height, full_width, _ = image.shape
    width = min(width, full_width)
    size = (width, max(1, round(full_height * width / full_width)))
    shown = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    parts = [np.asarray(shown)]
    for labels in label_maps:
        shown = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        gap = np.full((size[1], _GAP, 3), 255, np.uint8)
        parts += [gap, colors[np.asarray(shown)]]
    return np.concatenate(parts, axis=1)


def draw_legend(classes: Sequence[str], colors: Colors) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws the names of the classes beside their colours."""
    font = ImageFont.load_default(_LINE // 2)
    width = 2 * _LINE + int(max(font.getlength(name) for name in classes))
    image = Image.new("RGB", (width, _LINE * len(classes)), "white")
    draw = ImageDraw.Draw(image)
    for i, (name, color) in enumerate(zip(classes, colors.tolist(), strict=False)):
        top = _LINE * i + _LINE // 4
        box = (_LINE // 4, top, _LINE, top + _LINE // 2)
        draw.rectangle(box, fill=tuple(color), outline="grey")
        draw.text((1.5 * _LINE, top), name, fill="black", font=font)
    return np.array(image)


def encode_label_map(labels: Labels, colors: Colors) -> bytes:
    """Encodes class ids as a PNG with the class colours as palette."""
    return _encode(_to_palette(labels, colors), "png")


def encode_png_fast(image: UInt8[np.ndarray, "_ _ 3"]) -> bytes:
    """Encodes a PNG quickly, with low compression."""
    return _encode(Image.fromarray(image), "png", compress_level=1)


def encode_jpeg(image: Pixels) -> bytes:
    """Encodes a JPEG of good quality."""
    return _encode(Image.fromarray(image), "jpeg", quality=90)


def encode_animation(label_maps: UInt8[np.ndarray, "t _ _"], colors: Colors) -> bytes:
    """Encodes an endless GIF that pauses at the last label map."""
    factor = -(-_LEAST_WIDTH // label_maps.shape[2])
    frames = [
        _to_palette(labels.repeat(factor, axis=0).repeat(factor, axis=1), colors)
        for labels in label_maps
    ]
    return _encode(
        frames[0],
        "gif",
        save_all=True,
        append_images=frames[1:],
        duration=[_MILLISECONDS] * (len(frames) - 1) + [_LAST_MILLISECONDS],
        loop=0,
    )


def _to_palette(labels: UInt8[np.ndarray, "_ _"], colors: Colors) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(labels)).convert("P")
    image.putpalette(colors.tobytes())
    return image


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
