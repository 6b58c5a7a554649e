"""The camera, canvas and sprites of `streets`, measured in metres.

A pinhole camera looks along a straight, level road, so that an object of H metres that
stands on row v is H * s(v) pixels tall:

    s(v) = (v - horizon) / CAMERA_HEIGHT     pixels per metre,
    u    = vanishing + X * s(v)              column of a point X metres to the right.

Only uniform random numbers, `+ - * /`, rounding and comparisons are used. IEEE 754
defines these exactly, so every machine paints the same bytes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE = range(6)
SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = range(6, 12)

CAMERA_HEIGHT = 1.5  # metres

# Difficulty of the scenes, except light and sensor, which `scene` adds.
FADING = 0.65  # maximum loss of opacity of an object; 0: objects are solid
FADED_SHARE = 0.4  # approximate share of the image where objects fade
TEXTURE = 0.8  # factor on the texture of every surface
COLOR_SPREAD = 0.09  # half width of the variation around a palette entry

Number = int | float  # beartype does not accept an int as a float
Palette = list[tuple[float, float, float]]  # RGB in [0, 1]
Window = tuple[slice, slice]
WHOLE = (slice(None), slice(None))


class Camera(NamedTuple):
    """One scene's geometry."""

    horizon: float  # row
    vanishing: float  # column
    focal: float  # pixels: depth in metres = focal / scale
    kerbs: tuple[float, float]  # metres to the left and to the right
    walls: tuple[float, float]  # house fronts, metres to the left and to the right


class Plane(NamedTuple):
    """Two upright planes along the road, one on each side, seen by every pixel."""

    side: Bool[np.ndarray, "1 w"]  # True right of the vanishing point
    scale: Float[np.ndarray, "1 w"]  # pixels per metre
    depth: Float[np.ndarray, "1 w"]  # metres from the camera
    up: Float[np.ndarray, "h w"]  # metres above the ground


class Canvas:
    """A scene, painted from back to front.

    `rows` [h 1] and `columns` [1 w] are pixel centres. `unit` is 1/96 of the height.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        """Draws the camera and noise fields of a scene."""
        self.rng = rng
        self.height, self.width, self.unit = height, width, height / 96
        self.image = np.zeros((3, height, width), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.rows = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.columns = np.arange(width, dtype=np.float32)[None] + 0.5
        kerbs = self.uniform(2.4, 5), self.uniform(2.4, 5)
        self.camera = Camera(
            horizon=self.uniform(0.44, 0.56) * height,
            vanishing=self.uniform(0.3, 0.7) * width,
            focal=1.1 * height,
            kerbs=kerbs,
            walls=(kerbs[0] + self.uniform(2, 5), kerbs[1] + self.uniform(2, 5)),
        )
        self.leaves = self.noise(2.5)
        self.blotches = self.noise(6)
        self.texture = rng.random((height, width), np.float32) + self.leaves - 1
        fade = (self.noise(4) - 0.8 + 0.6 * FADED_SHARE) * 4
        self.opacity = 1 - FADING * np.clip(fade, 0, 1)

    def noise(self, cell: Number) -> Float[np.ndarray, "h w"]:
        """Draws bilinear noise in [0, 1] with one random value per `cell` units."""
        rows, columns = (
            self.rows / (cell * self.unit),
            self.columns / (cell * self.unit),
        )
        top, left = rows[:, 0].astype(int), columns[0].astype(int)
        lattice = self.rng.random((top[-1] + 2, left[-1] + 2), np.float32)
        down, right = rows - np.floor(rows), columns - np.floor(columns)
        bands = lattice[top] + down * (lattice[top + 1] - lattice[top])
        return bands[:, left] + right * (bands[:, left + 1] - bands[:, left])

    def uniform(self, low: Number, high: Number) -> float:
        """Draws a number in [low, high)."""
        return low + (high - low) * self.rng.random()

    def count(self, low: int, high: int) -> int:
        """Draws an integer in [low, high]."""
        return low + int(self.rng.random() * (high - low + 1))

    def chance(self, probability: Number) -> bool:
        """Returns True with this probability."""
        return self.rng.random() < probability

    def color(self, palette: Palette, number: int = 1) -> Float[np.ndarray, "3 1 n"]:
        """Draws entries of the palette, with random brightness and tint."""
        random = self.rng.random((5, number), np.float32)
        entries = np.array(palette, np.float32)[(random[4] * len(palette)).astype(int)]
        tint = 0.4 * (2 * random[:3] - 1) + 0.6 * (2 * random[3] - 1)
        return (entries.T + COLOR_SPREAD * tint)[:, None]

    def plane(self, left: Number, right: Number, columns: slice = slice(None)) -> Plane:
        """Returns the planes `left` and `right` metres beside the camera."""
        offset = self.columns[:, columns] - self.camera.vanishing
        side = offset > 0
        distance = np.maximum(np.abs(offset), 0.5)
        scale = distance / np.where(side, np.float32(right), np.float32(left))
        up = CAMERA_HEIGHT - (self.rows - self.camera.horizon) / scale
        return Plane(side, scale, self.camera.focal / scale, up)

    def paint(
        self,
        mask: Bool[np.ndarray, "bh bw"],
        color: Float[np.ndarray, "3 #bh #bw"],
        class_id: int | None = None,
        *,
        texture: Number = 0.08,
        fades: bool = False,
        window: Window = WHOLE,
    ) -> None:
        """Paints and labels the pixels of a mask.

        Args:
          mask: The pixels of the window to paint.
          color: The RGB colour, nominally in [0, 1]; clipped at exposure.
          class_id: The label; None keeps the labels.
          texture: The amplitude of the texture.
          fades: Whether the paint fades where the scene's opacity is low.
          window: The rows and columns of the canvas.
        """
        rows, columns = mask.nonzero()
        region = self.image[:, *window]
        paint = np.broadcast_to(color, (3, *mask.shape))[:, rows, columns]
        paint = paint + TEXTURE * texture * self.texture[window][rows, columns]
        if fades:
            under = region[:, rows, columns]
            paint = under + self.opacity[window][rows, columns] * (paint - under)
        region[:, rows, columns] = paint
        if class_id is not None:
            self.label[window][rows, columns] = class_id


class Sprite:
    """An object's window of the canvas, with coordinates in metres.

    `x` [1 bw] is the distance to the right of, and `y` [bh 1] the height above, the
    object's foot. The window is empty if the object is outside the image.
    """

    def __init__(
        self,
        canvas: Canvas,
        class_id: int,
        x: Number,
        scale: float,
        half_width: Number,
        height: Number,
    ) -> None:
        """Places an object of at most this size `x` metres beside the camera."""
        foot = canvas.camera.horizon + CAMERA_HEIGHT * scale
        column = canvas.camera.vanishing + x * scale
        rows = slice(
            int(max(foot - height * scale, 0)), int(min(foot, canvas.height)) + 1
        )
        columns = slice(
            int(max(column - half_width * scale, 0)),
            int(max(column + half_width * scale, -1)) + 1,
        )
        self.canvas, self.class_id, self.window = canvas, class_id, (rows, columns)
        self.x = (canvas.columns[:, columns] - column) / scale
        self.y = (foot - canvas.rows[rows]) / scale
        self.pixel = 1 / scale  # metres

    def bar(
        self, x: Number, width: Number, low: Number, high: Number, lean: Number = 0.0
    ) -> Bool[np.ndarray, "bh bw"]:
        """Returns an upright bar around x, at least a pixel wide, with slope `lean`."""
        half = max(width / 2, 0.51 * self.pixel)
        inside = np.abs(self.x - x - lean * (self.y - low)) < half
        return inside & (self.y >= low) & (self.y < max(high, low + self.pixel))

    def ellipse(
        self, x: Number, y: Number, across: Number, up: Number
    ) -> Float[np.ndarray, "bh bw"]:
        """Returns squared distances from a centre in radii `across` and `up`."""
        dx, dy = (self.x - x) / across, (self.y - y) / up
        return dx * dx + dy * dy

    def paint(
        self,
        mask: Bool[np.ndarray, "bh bw"],
        color: Float[np.ndarray, "3 #bh #bw"],
        *,
        texture: Number = 0.08,
    ) -> None:
        """Paints and labels a mask of the window."""
        self.canvas.paint(
            mask,
            color,
            self.class_id,
            texture=texture,
            fades=True,
            window=self.window,
        )

    def mark(self, mask: Bool[np.ndarray, "bh bw"]) -> None:
        """Labels a mask of the window without painting it."""
        self.canvas.label[self.window][mask] = self.class_id
