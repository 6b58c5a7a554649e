"""`streets`: synthetic street scenes with CamVid's eleven classes and void.

The embedded default data set: no download, and the same bytes on every machine. Scenes
are painted from back to front (see `canvas`). Labels are exact and solid, but images
are ambiguous: objects fade into the background in blotches, fences are transparent, and
the colours of classes overlap. Faded parts can be inferred from the rest of the object
(a pole continues below and above), which takes a model of label structure rather than a
small segmenter.
"""

import numpy as np
from jaxtyping import UInt8

from iterinf.data.camvid_frames import CLASSES, COLORS
from iterinf.data.dataset import SPLITS, Dataset, Record, Split
from iterinf.data.streets.canvas import (
    BUILDING,
    CAMERA_HEIGHT,
    FENCE,
    POLE,
    ROAD,
    SIDEWALK,
    SKY,
    TREE,
    VOID,
    Canvas,
    Palette,
)
from iterinf.data.streets.objects import GREYS, LEAVES, PAINTS, draw_objects
from iterinf.errors import UserError

SPLIT_STRIDE = 1_000_000  # the scenes of split i start at i * SPLIT_STRIDE

# Difficulty of the scenes, in addition to the constants of `canvas`.
SENSOR_NOISE = 0.05  # maximum amplitude of the pixel noise, images in [0, 1]
LIGHT = (0.75, 1.15)  # range of a scene's brightness

_WHITE = 0.8
_HAZE = 0.74
_END_DEPTH = 70.0  # distance in metres of the house or trees at the end of the street
_LOTS = 6  # per side
_ROADS: Palette = [(0.34, 0.34, 0.36), (0.42, 0.42, 0.42), (0.3, 0.29, 0.29)]
_WALKS: Palette = [(0.46, 0.44, 0.43), (0.52, 0.48, 0.44), (0.4, 0.4, 0.42)]
_MARKS: Palette = [(0.66, 0.66, 0.64)]
_RAILS: Palette = [*GREYS, (0.2, 0.28, 0.16), (0.42, 0.32, 0.22), (0.7, 0.68, 0.62)]
_FACADES: Palette = [
    (0.48, 0.3, 0.24),
    (0.62, 0.54, 0.42),
    (0.5, 0.5, 0.5),
    (0.7, 0.68, 0.64),
    (0.36, 0.3, 0.26),
]


def generate_scene(
    seed: int, index: int, height: int, width: int
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Paints a street scene; each (seed, index) has its own random stream.

    Returns:
      The RGB image and its labels 0..11; 11 is void.
    """
    stream = np.random.SeedSequence([seed, index])
    canvas = Canvas(np.random.Generator(np.random.PCG64(stream)), height, width)
    _draw_sky(canvas)
    _draw_street_end(canvas)
    _draw_lots(canvas)
    _draw_ground(canvas)
    for _ in range(canvas.count(1, 2)):
        _draw_fence(canvas)
    draw_objects(canvas)
    _draw_hood(canvas)
    _blur_labels(canvas)
    return _expose(canvas), canvas.label


def load_streets(
    *,
    seed: int = 0,
    height: int = 96,
    width: int = 128,
    num_train: int = 400,
    num_validation: int = 100,
    num_test: int = 200,
) -> Dataset:
    """Opens the data set; scenes are painted lazily.

    Splits never share a scene, and their scenes do not depend on the sizes of other
    splits. Bootstrap blocks are single scenes.

    Raises:
      UserError: If an option is out of range.
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    for key, value, least, most in (
        ("seed", seed, 0, 2**32 - 1),
        ("height", height, 32, 4096),
        ("width", width, 32, 4096),
        *((f"num_{name}", count, 1, SPLIT_STRIDE) for name, count in counts.items()),
    ):
        if not least <= value <= most:
            raise UserError(f"{key} of streets is {value}, expected {least}..{most}")

    def open_split(name: str, start: int) -> Split:
        names = [f"streets_{seed}_{name}_{i:06d}" for i in range(counts[name])]

        def read(position: int) -> Record:
            scene = generate_scene(seed, start + position, height, width)
            return Record(*scene, names[position])

        return Split(read, names, range(len(names)))

    splits = [open_split(name, i * SPLIT_STRIDE) for i, name in enumerate(SPLITS)]
    return Dataset("streets", CLASSES, COLORS, *splits)


def _draw_sky(canvas: Canvas) -> None:
    """Draws a gradient from the zenith to the horizon, with clouds."""
    low = canvas.color([(0.8, 0.82, 0.84), (0.7, 0.74, 0.8)])
    high = canvas.color([(0.45, 0.58, 0.78), (0.72, 0.74, 0.76), (0.6, 0.64, 0.7)])
    t = np.clip(canvas.rows / canvas.camera.horizon, 0, 1)  # h 1
    sky = high + t * (low - high)
    clouds = np.clip(
        3 * (canvas.noise(24) + 0.4 * canvas.noise(9) - canvas.uniform(0.6, 1.2)), 0, 1
    )
    canvas.image[:] = sky + 0.6 * clouds * (_WHITE - sky)
    canvas.label[:] = SKY


def _draw_street_end(canvas: Canvas) -> None:
    """Draws a hazy house or row of trees at the end of the street."""
    camera = canvas.camera
    scale = camera.focal / _END_DEPTH
    up = (camera.horizon - canvas.rows) / scale
    x = (canvas.columns - camera.vanishing) / scale
    inside = (x > -camera.walls[0] - 8) & (x < camera.walls[1] + 8) & (up > -2)
    is_house = canvas.chance(0.5)
    ragged = 0 if is_house else 4 * canvas.leaves
    color = canvas.color(_FACADES if is_house else LEAVES)
    color += 0.35 * (_HAZE - color)
    mask = inside & (up < canvas.uniform(4, 10) - ragged)
    canvas.paint(mask, color, BUILDING if is_house else TREE)


def _draw_lots(canvas: Canvas) -> None:
    """Draws house fronts, groups of trees and gaps on both sides."""
    side, scale, depth, up = canvas.plane(*canvas.camera.walls)
    rng, size = canvas.rng, (2, _LOTS)
    near = canvas.camera.focal / float(scale.max())
    edges = near + np.cumsum(5 + 12 * rng.random(size), axis=1)
    lot = (depth[..., None] > edges[side.astype(int)]).sum(-1)
    lot = np.minimum(lot, _LOTS - 1) + _LOTS * side  # 1 w
    kind, tall, storey, bay, pane = rng.random((5, 2 * _LOTS))[:, lot]  # each 1 w

    colors = canvas.color(_FACADES, 2 * _LOTS)[..., lot[0]]
    glass = canvas.color(GREYS, 2 * _LOTS)[..., lot[0]]
    houses = (up > 0) & (up < 5 + 12 * tall) & (kind < 0.65)
    canvas.paint(houses, colors * (0.8 + 0.3 * side), BUILDING)
    across = depth / (2 + 2 * bay)
    floors = up / (2.7 + storey)
    across, floors = across - np.floor(across), floors - np.floor(floors)
    windows = (across > 0.3) & (across < 0.55 + 0.3 * pane)
    windows = windows & (floors > 0.3) & (floors < 0.75) & (up < 4.2 + 12 * tall)
    canvas.paint(windows & houses, glass, BUILDING)

    leaves = canvas.color(LEAVES, 2 * _LOTS)[..., lot[0]]
    top = (2 + 6 * tall) * (0.5 + 0.8 * canvas.blotches) - 0.8 * canvas.leaves
    trees = (up > 0) & (up < top) & (kind >= 0.65)
    canvas.paint(trees, leaves, TREE, texture=0.3)


def _draw_ground(canvas: Canvas) -> None:
    """Draws the road with markings, sidewalks with kerbs and slabs, and shadows."""
    camera = canvas.camera
    scale = np.maximum(canvas.rows - camera.horizon, 0.25) / CAMERA_HEIGHT  # h 1
    x = (canvas.columns - camera.vanishing) / scale
    z = camera.focal / scale
    below = canvas.rows > camera.horizon
    left, right = camera.kerbs
    walk = below & (x > -camera.walls[0]) & (x < camera.walls[1])
    road = below & (x > -left) & (x < right)

    stains = 0.12 * (canvas.blotches - 0.5)
    stone = canvas.color(_WALKS)
    canvas.paint(walk, stone + stains, SIDEWALK, texture=0.12)
    slab_x, slab_z = x / 1.2, z / 1.2
    joint = (slab_x - np.floor(slab_x) < 0.08) | (slab_z - np.floor(slab_z) < 0.12)
    canvas.paint(walk & joint, stone - 0.08, texture=0.12)
    kerb = walk & (x > -left - 0.2) & (x < right + 0.2)
    canvas.paint(kerb, canvas.color(_WALKS) + 0.08)
    canvas.paint(road, canvas.color(_ROADS) + stains, ROAD, texture=0.12)

    middle, dash = (right - left) / 2, z / canvas.uniform(4, 7)
    line = (np.abs(x - middle) < 0.08) & (dash - np.floor(dash) < 0.5)
    line |= (np.abs(x + left - 0.4) < 0.06) | (np.abs(x - right + 0.4) < 0.06)
    if canvas.chance(0.25):
        start = canvas.uniform(6, 14)
        line |= (z > start) & (z < start + 2.5) & (x - np.floor(x) < 0.5)
    canvas.paint(road & line, canvas.color(_MARKS), fades=True)

    limit = canvas.uniform(-left - 2, right + 2)
    shade = walk & ((x < limit) if canvas.chance(0.5) else (x > limit))
    dim = np.where(shade & (canvas.leaves > 0.25), canvas.uniform(0.55, 0.95), 1.0)
    canvas.image *= dim


def _draw_fence(canvas: Canvas) -> None:
    """Draws a transparent fence along the house fronts or a kerb on one side."""
    camera = canvas.camera
    lines = camera.kerbs if canvas.chance(0.3) else camera.walls
    inset = 0.2 if lines is camera.walls else -0.2
    side, scale, depth, up = canvas.plane(lines[0] - inset, lines[1] - inset)
    chosen = side if canvas.chance(0.5) else ~side
    near = camera.focal / float(np.max(scale * chosen))
    start = near * canvas.uniform(0.8, 1.8)
    top = canvas.uniform(1.4, 2.4)
    along = (depth > start) & (depth < start + canvas.uniform(10, 30))
    solid = chosen & along & (up > 0) & (up < top)

    period = canvas.uniform(0.35, 0.9)
    posts, rails = depth / period, (up / top) * canvas.count(2, 4) + 0.3
    bars = (posts - np.floor(posts) < 0.45) | (rails - np.floor(rails) < 0.3)
    canvas.paint(solid & bars, canvas.color(_RAILS), fades=True)
    canvas.label[solid] = FENCE


def _draw_hood(canvas: Canvas) -> None:
    """Draws the camera car's hood, labelled void, in some scenes."""
    if not canvas.chance(0.3):
        return
    dx = canvas.columns / canvas.width - canvas.uniform(0.4, 0.6)
    height = canvas.uniform(0.04, 0.09) * (1 - 2.5 * dx * dx)
    hood = canvas.rows > canvas.height * (1 - height)
    canvas.paint(hood, canvas.color(PAINTS), VOID, texture=0.03)


def _blur_labels(canvas: Canvas) -> None:
    """Makes some borders between large surfaces void, as annotators do."""
    label = canvas.label
    large = (label <= TREE) & (label != POLE)
    border = np.zeros_like(large)
    border[:, 1:] |= (label[:, 1:] != label[:, :-1]) & large[:, 1:] & large[:, :-1]
    border[1:] |= (label[1:] != label[:-1]) & large[1:] & large[:-1]
    label[border & (canvas.blotches > 0.6)] = VOID


def _expose(canvas: Canvas) -> UInt8[np.ndarray, "h w 3"]:
    """Applies light, lens and sensor: gains, blur and noise, rounded to bytes."""
    gain = canvas.uniform(*LIGHT) * (
        0.9 + 0.2 * canvas.rng.random((3, 1, 1), np.float32)
    )
    image = np.pad(canvas.image * gain, ((0, 0), (1, 1), (1, 1)), mode="edge")
    side = canvas.uniform(0.05, 0.22)  # weight of each neighbour
    image = (1 - 2 * side) * image[:, 1:-1] + side * (image[:, :-2] + image[:, 2:])
    image = (1 - 2 * side) * image[..., 1:-1] + side * (
        image[..., :-2] + image[..., 2:]
    )
    noise = canvas.rng.random(image.shape, np.float32)
    noise += canvas.rng.random(image.shape, np.float32) - 1
    image += canvas.uniform(0.25, 1) * SENSOR_NOISE * noise
    image = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))
