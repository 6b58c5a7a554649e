"""What `streets` is painted with: a camera, a canvas and sprites measured in metres.

A pinhole camera looks along a straight, level road, so that an object of H metres that
stands on row v is H * s(v) pixels tall:

    s(v) = (v - horizon) / CAMERA_HEIGHT     pixels a metre,
    u    = vanishing + X * s(v)              column of a point X metres to the right.

Only uniform random numbers, `+ - * /`, rounding and comparisons are used. IEEE 754
fixes each to the last bit, so every machine paints the same bytes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE = range(6)
SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = range(6, 12)

CAMERA_HEIGHT = 1.5  # metres

# How hard the scenes are: all but the light and the sensor, which `streets` adds.
FADING = 0.65  # opacity an object loses where it fades most; 0: objects are solid
FADED_SHARE = 0.4  # share of the picture, roughly, where objects fade at all
TEXTURE = 0.8  # factor on every surface's texture
COLOR_SPREAD = 0.09  # half width of a colour's variation around its palette entry

Number = int | float  # beartype alone would not let an int be a float
Palette = list[tuple[float, float, float]]  # RGB in [0, 1]
Window = tuple[slice, slice]
WHOLE = (slice(None), slice(None))


class Camera(NamedTuple):
    """One scene's geometry."""

    horizon: float  # row
    vanishing: float  # column
    focal: float  # pixels: depth in metres = focal / scale
    kerbs: tuple[float, float]  # metres to the left and to the right
    walls: tuple[float, float]  # the same, of the line of house fronts


class Plane(NamedTuple):
    """Two upright planes along the road, one on each side, seen by every pixel."""

    side: Bool[np.ndarray, "1 w"]  # True right of the vanishing point
    scale: Float[np.ndarray, "1 w"]  # pixels a metre
    depth: Float[np.ndarray, "1 w"]  # metres from the camera
    up: Float[np.ndarray, "h w"]  # metres above the ground


class Canvas:
    """A scene being painted from back to front.

    `rows` [h 1] and `columns` [1 w] are pixel centres. `unit` is the size in pixels of
    what is one pixel large in a picture 96 pixels tall.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        """Draws one scene's camera and noise fields."""
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
        """Bilinear noise in [0, 1], a new random value every `cell` units."""
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
        """One number in [low, high)."""
        return low + (high - low) * self.rng.random()

    def count(self, low: int, high: int) -> int:
        """One whole number from low to high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def chance(self, probability: Number) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def color(self, palette: Palette, number: int = 1) -> Float[np.ndarray, "3 1 n"]:
        """Entries of the palette, each brightened and tinted at random."""
        random = self.rng.random((5, number), np.float32)
        entries = np.array(palette, np.float32)[(random[4] * len(palette)).astype(int)]
        tint = 0.4 * (2 * random[:3] - 1) + 0.6 * (2 * random[3] - 1)
        return (entries.T + COLOR_SPREAD * tint)[:, None]

    def plane(self, left: Number, right: Number, columns: slice = slice(None)) -> Plane:
        """The planes `left` and `right` metres beside the camera, in some columns."""
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
          mask: the pixels, of a window.
          color: RGB, nominally in [0, 1]; clipped when the scene is exposed.
          class_id: their label; None leaves the labels as they are.
          texture: amplitude of the texture.
          fades: whether the paint is thin where the scene's opacity is low.
          window: rows and columns of the canvas.
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
    """An object's window of the canvas, in its own metres.

    `x` [1 bw] is to the right of, `y` [bh 1] above the point where it stands. The
    window is empty where the object is outside the picture.
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
        """Stands an object of at most this size `x` metres beside the camera."""
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
        """An upright bar around x, at least a pixel wide; `lean`: slope dx / dy."""
        half = max(width / 2, 0.51 * self.pixel)
        inside = np.abs(self.x - x - lean * (self.y - low)) < half
        return inside & (self.y >= low) & (self.y < max(high, low + self.pixel))

    def ellipse(
        self, x: Number, y: Number, across: Number, up: Number
    ) -> Float[np.ndarray, "bh bw"]:
        """Squared distance from a centre, one at the radii `across` and `up`."""
        dx, dy = (self.x - x) / across, (self.y - y) / up
        return dx * dx + dy * dy

    def local(self, field: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "bh bw"]:
        """A field of the canvas, cut to the window."""
        return field[self.window]

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
        """Labels a mask of the window and leaves the picture as it is."""
        np.copyto(self.canvas.label[self.window], np.uint8(self.class_id), where=mask)
