"""Class boundaries of label maps, and the boundary F1 measure."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

_BITS = 32


class Boundaries(NamedTuple):
    """The boundaries of a label map."""

    classes: Int[Array, "h w"]  # class of boundary pixels; k elsewhere
    near: UInt32[Array, "h w words"]  # bit set of classes with a boundary nearby


def find_boundaries(
    labels: Integer[Array, "h w"], valid: Bool[Array, "h w"]
) -> Bool[Array, "h w"]:
    """Marks the valid pixels that have a valid 4-neighbour of another class."""
    height, width = labels.shape
    classes = jnp.where(valid, labels.astype(jnp.int32), -1)  # -1: void
    padded = jnp.pad(classes, 1, constant_values=-1)
    found = jnp.zeros(labels.shape, bool)
    for top, left in ((0, 1), (1, 0), (1, 2), (2, 1)):
        neighbor = padded[top : top + height, left : left + width]
        found |= (neighbor >= 0) & (neighbor != classes)
    return found & valid


def locate_boundaries(
    labels: Integer[Array, "h w"],
    valid: Bool[Array, "h w"],
    num_classes: int,
    radius: float,
) -> Boundaries:
    """Finds the boundaries of every class, and all pixels within a radius of them."""
    labels = labels.astype(jnp.int32)
    boundary = find_boundaries(labels, valid)
    # One bit per class, in words of 32, so that all classes are dilated at once.
    words = jnp.arange(-(-num_classes // _BITS), dtype=jnp.int32)[None, None]
    bit = jnp.uint32(1) << (labels % _BITS).astype(jnp.uint32)
    here = boundary[..., None] & (labels[..., None] // _BITS == words)
    bits = jnp.where(here, bit[..., None], jnp.uint32(0))
    return Boundaries(jnp.where(boundary, labels, num_classes), _dilate(bits, radius))


def compute_boundary_f1(
    truth: Boundaries, prediction: Boundaries, num_classes: int
) -> Float[Array, ""]:
    """Computes the boundary F1 of an image.

    For class c, let B_c and P_c be the boundary pixels of that class in the truth and
    in the prediction, and

      recall_c    = |{p in B_c: some q in P_c has |p - q| <= radius}| / |B_c|
      precision_c = |{q in P_c: some p in B_c has |p - q| <= radius}| / |P_c|
      F1_c        = 2 precision_c recall_c / (precision_c + recall_c)

    The result is the mean of F1_c over the classes that have a boundary in the truth; a
    class that is not predicted has F1_c = 0.

    It is nan if the truth has no boundary. Truth and prediction must have the same
    valid pixels and radius.

    Source: Csurka et al. 2013, "What is a good evaluation measure for semantic
      segmentation?", section 2.2; there, as in SegNet's CamVid table, the radius is
      0.75% of the image diagonal.
    """
    recall, present = _compute_matched_share(truth, prediction, num_classes)
    precision, _ = _compute_matched_share(prediction, truth, num_classes)
    total = recall + precision
    f1 = jnp.where(total > 0, 2 * recall * precision / jnp.maximum(total, 1e-9), 0.0)
    return jnp.sum(f1, where=present) / jnp.sum(present)


def _compute_matched_share(
    ones: Boundaries, others: Boundaries, num_classes: int
) -> tuple[Float[Array, " k"], Bool[Array, " k"]]:
    """Computes the matched share of boundary pixels per class, and the present ones."""
    classes = ones.classes
    matched = jnp.zeros(classes.shape, jnp.int32)
    for word in range(others.near.shape[-1]):
        bit = (classes - _BITS * word).clip(0, _BITS - 1).astype(jnp.uint32)
        found = (others.near[..., word] >> bit) & 1
        matched = jnp.where(classes // _BITS == word, found.astype(jnp.int32), matched)
    pairs = (2 * classes + matched).reshape(-1)
    counts = jnp.bincount(pairs, length=2 * num_classes + 2)[:-2].reshape(-1, 2)
    total = counts.sum(axis=1)
    return counts[:, 1] / jnp.maximum(total, 1), total > 0


def _dilate(
    bits: UInt32[Array, "h w words"], radius: float
) -> UInt32[Array, "h w words"]:
    """Computes the union of the bit sets within a radius, first along rows."""
    height, width, _ = bits.shape
    reach = math.floor(radius)
    rows = range(-reach, reach + 1)
    halves = [math.floor(math.sqrt(radius**2 - row**2)) for row in rows]
    padded = jnp.pad(bits, ((0, 0), (reach, reach), (0, 0)))
    widened = {0: bits}  # by half the width of a row of the disc
    for half in range(1, reach + 1):
        left, right = (padded[:, reach + x : reach + x + width] for x in (-half, half))
        widened[half] = widened[half - 1] | left | right
    # Without the barrier, XLA fuses these with the loop and recomputes them per row.
    widened = jax.lax.optimization_barrier({half: widened[half] for half in {*halves}})
    padding = ((reach, reach), (0, 0), (0, 0))
    padded_rows = {half: jnp.pad(x, padding) for half, x in widened.items()}
    united = jnp.zeros_like(bits)
    for row, half in zip(rows, halves, strict=True):
        united |= padded_rows[half][reach + row : reach + row + height]
    return united
