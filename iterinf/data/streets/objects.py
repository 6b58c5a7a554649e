"""The objects of `streets`, measured in metres."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iterinf.data.streets.canvas import (
    BICYCLIST,
    CAR,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    VOID,
    Canvas,
    Palette,
    Sprite,
)

# Difficulty, like the constants of `canvas`: the proximity and thus size of objects.
OBJECT_SIZE = 1.5

# Palettes overlap on purpose: colour alone does not identify a class.
GREYS: Palette = [(0.35, 0.35, 0.37), (0.55, 0.54, 0.52), (0.22, 0.22, 0.24)]
LEAVES: Palette = [(0.2, 0.3, 0.13), (0.3, 0.36, 0.16), (0.36, 0.29, 0.15)]
PAINTS: Palette = [*GREYS, (0.78, 0.78, 0.78), (0.5, 0.12, 0.12), (0.14, 0.2, 0.45)]
_BARK: Palette = [(0.25, 0.2, 0.16), (0.34, 0.3, 0.26)]
_CLOTHES: Palette = [
    (0.14, 0.14, 0.2),
    (0.66, 0.16, 0.18),
    (0.16, 0.28, 0.62),
    (0.72, 0.68, 0.6),
    (0.75, 0.5, 0.14),
]
_POLES: Palette = [(0.16, 0.18, 0.18), (0.26, 0.26, 0.28), (0.72, 0.72, 0.7)]
_PLATES: Palette = [
    (0.2, 0.3, 0.62),
    (0.62, 0.18, 0.15),
    (0.8, 0.78, 0.72),
    (0.72, 0.58, 0.2),
    (0.3, 0.34, 0.3),
]
_HEADS: Palette = [(0.6, 0.45, 0.36), (0.45, 0.32, 0.25), (0.2, 0.18, 0.16)]
_GLASS: Palette = [(0.2, 0.22, 0.26), (0.5, 0.54, 0.58)]
_TYRES: Palette = [(0.1, 0.1, 0.12)]
_LAMPS: Palette = [(0.6, 0.15, 0.1), (0.8, 0.78, 0.7)]


def _draw_tree(canvas: Canvas, x: float, scale: float) -> None:
    """Draws a trunk under an irregular crown with holes."""
    high, radius = canvas.uniform(3.5, 6.5), canvas.uniform(1.3, 2.8)
    sprite = Sprite(canvas, TREE, x, scale, 1.5 * radius, high + 1.5 * radius)
    sprite.paint(sprite.bar(0, canvas.uniform(0.2, 0.45), 0, high), canvas.color(_BARK))
    ragged = (1.1 * canvas.blotches + 0.9 * canvas.leaves)[sprite.window]
    crown = sprite.ellipse(0, high, radius, radius * canvas.uniform(0.8, 1.2))
    crown = crown + ragged < 1.9
    sprite.mark(crown)
    crown &= canvas.texture[sprite.window] > -0.6
    sprite.paint(crown, canvas.color(LEAVES), texture=0.3)


def _draw_pole(canvas: Canvas, x: float, scale: float) -> None:
    """Draws a thin column, sometimes with a street lamp's arm towards the road."""
    high = canvas.uniform(3.5, 6.5)
    sprite = Sprite(canvas, POLE, x, scale, 1.6, high + 0.3)
    color = canvas.color(_POLES)
    sprite.paint(sprite.bar(0, canvas.uniform(0.2, 0.36), 0, high), color)
    if canvas.chance(0.4):
        reach = -0.7 if x > 0 else 0.7
        sprite.paint(sprite.bar(reach, 1.4, high - 0.12, high), color)


def _draw_sign(canvas: Canvas, x: float, scale: float) -> None:
    """Draws a plate (disc, board or triangle) or traffic light on a pole."""
    high, half = canvas.uniform(2.1, 3.2), canvas.uniform(0.45, 0.75)
    sprite = Sprite(canvas, POLE, x, scale, 1, high + 2 * half + 0.2)
    sprite.paint(sprite.bar(0, 0.22, 0, high + half), canvas.color(_POLES))
    sprite.class_id = SIGN
    color, inner = canvas.color(_PLATES), canvas.color(_PLATES)
    shape = canvas.count(0, 3)
    if shape == 0:
        disc = sprite.ellipse(0, high + half, half, half)
        sprite.paint(disc < 1, color)
        sprite.paint(disc < 0.4, inner)
    elif shape == 1:
        sprite.paint(sprite.bar(0, 2 * half, high, high + 1.6 * half), color)
        sprite.paint(sprite.bar(0, 1.4 * half, high + half / 2, high + half), inner)
    elif shape == 2:
        level = (sprite.y - high) / (2 * half)
        sprite.paint((level >= 0) & (np.abs(sprite.x) < half * (1 - level)), color)
    else:
        sprite.paint(sprite.bar(0, 0.36, high, high + 1), canvas.color(_TYRES))
        lamp = high + (0.2, 0.5, 0.8)[canvas.count(0, 2)]
        sprite.paint(sprite.ellipse(0, lamp, 0.14, 0.14) < 1, color)


def _draw_car(canvas: Canvas, x: float, scale: float) -> None:
    """Draws a car from behind or in front, with the side that faces the camera."""
    color = canvas.color(PAINTS)
    glass = canvas.color(_GLASS)
    tyre = canvas.color(_TYRES)
    inner = abs(x) - 0.85
    if inner > 0.2:
        _draw_flank(canvas, inner if x > 0 else -inner, scale, color * 0.8, glass)
    sprite = Sprite(canvas, CAR, x, scale, 1, 1.6)
    sprite.paint(sprite.bar(0, 1.75, 0.0, 0.35) & (np.abs(sprite.x) > 0.6), tyre)
    sprite.paint(sprite.bar(0, 1.7, 0.2, 0.95), color)
    cabin = (np.abs(sprite.x) < 0.85 - 0.35 * (sprite.y - 0.9)) & (sprite.y >= 0.9)
    sprite.paint(cabin & (sprite.y < 1.45), color)
    sprite.paint(sprite.bar(0, 1.25, 0.95, 1.32), glass)
    lights = (np.abs(sprite.x) > 0.58) & sprite.bar(0, 1.6, 0.65, 0.85)
    sprite.paint(lights, canvas.color(_LAMPS))


def _draw_flank(
    canvas: Canvas,
    x: float,
    scale: float,
    color: Float[np.ndarray, "3 1 1"],
    glass: Float[np.ndarray, "3 1 1"],
) -> None:
    """Draws the side of a car that faces the camera, x metres beside it."""
    focal, vanishing = canvas.camera.focal, canvas.camera.vanishing
    near = focal / scale  # metres
    far_scale = focal / (near + 4)
    ends = sorted((vanishing + x * far_scale, vanishing + x * scale))
    columns = slice(*(max(round(end), 0) for end in ends))
    _, _, depth, up = canvas.plane(abs(x), abs(x), columns)
    window = slice(None), columns
    along = (depth - near) / 4  # 0 near .. 1 far
    roof = np.where((along > 0.12) & (along < 0.8), 1.42, 0.9)
    body = (up > 0.1) & (up < roof)
    wheel = np.minimum(np.abs(along - 0.2), np.abs(along - 0.8)) < 0.08
    wheel = wheel & (up > 0) & (up < 0.6)
    pane = body & (up > 0.92) & (up < 1.3)
    tyre = canvas.color(_TYRES)
    for mask, paint in ((body, color), (pane, glass), (wheel, tyre)):
        canvas.paint(mask, paint, CAR, fades=True, window=window)


def _draw_pedestrian(canvas: Canvas, x: float, scale: float) -> None:
    """Draws a person who stands or walks."""
    scale *= canvas.uniform(0.85, 1.1)
    sprite = Sprite(canvas, PEDESTRIAN, x, scale, 0.6, 1.85)
    stride = canvas.uniform(0, 0.25)
    trousers = canvas.color(_CLOTHES)
    sprite.paint(sprite.bar(-0.09 - stride, 0.17, 0, 0.85, lean=stride), trousers)
    sprite.paint(sprite.bar(0.09 + stride, 0.17, 0, 0.85, lean=-stride), trousers)
    coat = sprite.bar(0, 0.46, 1.1, 1.42) | sprite.bar(0, 0.36, 0.78, 1.42)
    sprite.paint(coat, canvas.color(_CLOTHES))
    head = sprite.ellipse(0, 1.58, 0.14, 0.17) < 1
    sprite.paint(head, canvas.color(_HEADS))


def _draw_bicyclist(canvas: Canvas, x: float, scale: float) -> None:
    """Draws a rider on a bicycle, from the side or from behind."""
    sprite = Sprite(canvas, BICYCLIST, x, scale, 1.1, 1.85)
    coat, trousers = canvas.color(_CLOTHES), canvas.color(_CLOTHES)
    tyre = canvas.color(_TYRES)
    if canvas.chance(0.65):
        way = 1 if canvas.chance(0.5) else -1
        for centre in (-0.54, 0.54):
            wheel = sprite.ellipse(centre, 0.36, 0.36, 0.36)
            sprite.mark(wheel < 1)
            rim = 1 - min(1.8 * sprite.pixel, 0.3)
            sprite.paint((wheel < 1) & (wheel > rim * rim), tyre)
        frame = sprite.bar(0, 1, 0.5, 0.56) | sprite.bar(-0.2 * way, 0.06, 0.3, 0.9)
        sprite.paint(frame | sprite.bar(0.5 * way, 0.06, 0.36, 1.0, -0.2 * way), tyre)
        sprite.paint(sprite.bar(0.05 * way, 0.2, 0.25, 0.95, -0.25 * way), trousers)
        back = sprite.bar(-0.15 * way, 0.36, 0.85, 1.42, 0.55 * way)
        sprite.paint(back | sprite.bar(0.35 * way, 0.25, 1.0, 1.12), coat)
        head = sprite.ellipse(0.24 * way, 1.56, 0.14, 0.17)
    else:
        sprite.paint(sprite.bar(0, 0.1, 0, 0.75), tyre)
        sprite.paint(sprite.bar(0, 0.6, 0.98, 1.06), tyre)
        legs = sprite.bar(-0.14, 0.15, 0.3, 0.9) | sprite.bar(0.14, 0.15, 0.4, 0.9)
        sprite.paint(legs, trousers)
        sprite.paint(sprite.bar(0, 0.46, 0.82, 1.42), coat)
        head = sprite.ellipse(0, 1.56, 0.14, 0.17)
    sprite.paint(head < 1, canvas.color(_HEADS))


def _draw_litter_bin(canvas: Canvas, x: float, scale: float) -> None:
    """Draws an object outside the eleven classes."""
    sprite = Sprite(canvas, VOID, x, scale, 0.5, 1.2)
    sprite.paint(sprite.bar(0, 0.7, 0, canvas.uniform(0.7, 1.1)), canvas.color(PAINTS))


class _Kind(NamedTuple):
    """The number and position of a kind of object."""

    draw: Callable[[Canvas, float, float], None]
    number: tuple[int, int]  # minimum and maximum
    scale: tuple[float, float]  # farthest and nearest, units per metre
    place: tuple[float, float]  # metres from the kerb; < 0: on the road


_KINDS = (
    _Kind(_draw_tree, (1, 3), (3, 10), (1.2, 5)),
    _Kind(_draw_pole, (2, 5), (5, 17), (0.2, 1)),
    _Kind(_draw_sign, (1, 3), (9, 19), (0.2, 1.2)),
    _Kind(_draw_car, (1, 4), (4, 14), (-1.7, -1.2)),
    _Kind(_draw_pedestrian, (1, 3), (13, 22), (0.3, 2)),
    _Kind(_draw_pedestrian, (0, 1), (10, 20), (-3.5, -0.5)),
    _Kind(_draw_bicyclist, (1, 2), (8, 14), (-3, -0.4)),
    _Kind(_draw_litter_bin, (0, 1), (6, 14), (0.3, 1.5)),
)


def draw_objects(canvas: Canvas) -> None:
    """Draws random objects from far to near."""
    placed = []
    for kind in _KINDS:
        for _ in range(canvas.count(*kind.number)):
            on_right = canvas.chance(0.5)
            x = canvas.camera.kerbs[on_right] + canvas.uniform(*kind.place)
            x = x if on_right else -x
            left = canvas.camera.vanishing
            room = canvas.width - left if x > 0 else left  # pixels
            far, near = (canvas.unit * OBJECT_SIZE * scale for scale in kind.scale)
            near = min(near, (room - 2) / max(abs(x), 0.1))  # inside the image
            scale = canvas.uniform(min(far, 0.7 * near), near)
            placed.append((scale, x, kind.draw))
    for scale, x, draw in sorted(placed, key=lambda item: item[0]):
        draw(canvas, x, scale)
