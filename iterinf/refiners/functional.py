"""The dense CRF as one call: a softmax and an image in, probabilities out."""

import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from iterinf.errors import UserError
from iterinf.inference import refine
from iterinf.ops.permutohedral import fits_lattice
from iterinf.refiners.dense_crf import (
    Weight,
    check_weights,
    compute_unary,
    make_condition,
    update,
)

_LARGEST_WEIGHT = 1e30  # sums over all pixels stay finite
_LARGEST_DISTANCE = 1e18  # its square is finite, too


class Range(NamedTuple):
    """The smallest and the largest entry of an array."""

    low: Any
    high: Any


def dense_crf(
    probabilities: Array | np.ndarray,
    image: Array | np.ndarray,
    num_iterations: int = 10,
    *,
    from_logits: bool = False,
    spatial_width: Float[ArrayLike, "..."] = 3.0,
    spatial_weight: Weight | Sequence[Any] = 3.0,
    bilateral_width: Float[ArrayLike, "..."] = 80.0,
    color_width: Float[ArrayLike, "..."] = 13.0,
    bilateral_weight: Weight | Sequence[Any] = 10.0,
    exact: bool = False,
) -> Float[Array, "*b h w k"]:
    """Refines a softmax by the mean field of a dense CRF; see `DenseCRF`.

        y = softmax(logits)                      # [h w k], of any network
        y = iterinf.dense_crf(y, image)          # image [h w 3]
        labels = y.argmax(-1)

    Compiled once for every shape and number of iterations. Can be called inside `jit`
    and `grad`; traced values are not checked. Differentiable once, in reverse mode;
    with `exact` any number of times, in both modes.

    Args:
      probabilities: [h w k] or [b h w k]; sum to one over k >= 2.
      image: [h w 3] or [b h w 3], RGB, uint8 or floats in [0, 1].
      num_iterations: mean-field updates, 0 or more.
      from_logits: whether `probabilities` are logits instead: any real values. They
        are taken as they are, where probabilities are clipped to at least 1e-5.
      spatial_width: of the Gaussian kernel, in pixels.
      spatial_weight: a number, k of them, or a k x k matrix: how much class b of a
        neighbour (columns) speaks for class a (rows).
      bilateral_width: of the kernel of position and colour, in pixels.
      color_width: of that kernel, of 255 levels; at least 1.
      bilateral_weight: as `spatial_weight`.
      exact: sums over all pairs of pixels in place of the lattice: for small images.

    Returns:
      Probabilities, of the shape given.

    Raises:
      UserError: shapes or values that cannot be.
    """
    y, image = _read("probabilities", probabilities), _read("an image", image)
    _check_shapes(y.shape, image)
    widths = {
        "spatial_width": _read("spatial_width", spatial_width),
        "bilateral_width": _read("bilateral_width", bilateral_width),
        "color_width": _read("color_width", color_width),
    }
    weights = {
        "spatial_weight": _read("spatial_weight", spatial_weight),
        "bilateral_weight": _read("bilateral_weight", bilateral_weight),
    }
    check_weights(weights, y.shape[-1])
    num_iterations = _read_count(num_iterations)
    arrays = (y, image, widths, weights)
    is_traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays))
    is_finite = True  # surely: whether a result needs no check
    if not is_traced:
        with jax.ensure_compile_time_eval():
            # The only wait, and for inputs alone: a result is returned uncomputed.
            ranges, known_widths, known_weights = jax.device_get(
                (_measure_ranges(y, image), widths, weights)
            )
        _check_values(ranges, image.dtype, from_logits=from_logits)
        _check_scalars(known_widths, known_weights)
        is_finite = _is_surely_finite(y.shape, known_widths, exact=exact)
    is_single = y.ndim == 3
    if is_single:
        y, image = y[None], image[None]
    refined = _infer(
        y,
        image,
        list(widths.values()),
        list(weights.values()),
        num_iterations,
        from_logits,
        exact,
    )
    if not is_finite and jnp.any(jnp.isnan(refined)):
        given = ", ".join(f"{name} {width:g}" for name, width in widths.items())
        raise UserError(f"kernels too narrow for this image: {given}")
    return refined[0] if is_single else refined


@partial(jax.jit, static_argnums=(4, 5, 6))
def _infer(y, image, widths, weights, num_iterations, from_logits, exact):
    brightest = 255 if image.dtype == jnp.uint8 else 1
    y, widths, weights = jax.tree.map(
        lambda x: x.astype(jnp.float32), (y, widths, weights)
    )
    image = image.astype(jnp.float32) / brightest
    unary = y if from_logits else compute_unary(y)
    condition = make_condition(unary, image, *widths, exact=exact)
    refinement = refine(
        lambda y: nn.softmax(update(y, condition, *weights)),
        nn.softmax(unary),
        step_size=1.0,
        num_iterations=num_iterations,
    )
    return refinement.y


def _read(name: str, value: Any) -> Array | np.ndarray:
    """Leaves arrays of JAX where they are, and makes NumPy's of all else."""
    if isinstance(value, jax.Array):
        return value
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        return jnp.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise UserError(
            f"{name} of type {type(value).__name__}: expected numbers, in an array or "
            "what makes one"
        )
    return array


def _check_shapes(shape: tuple[int, ...], image: Array | np.ndarray) -> None:
    if len(shape) not in (3, 4) or image.shape != (*shape[:-1], 3):
        raise UserError(
            f"probabilities of shape {shape} and an image of shape {image.shape}: "
            "expected [h w k] and [h w 3], or [b h w k] and [b h w 3]"
        )
    if 0 in shape:
        raise UserError(f"probabilities of shape {shape}: there is no pixel")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(
            f"an image of {image.dtype}: expected uint8, or floats in [0, 1]"
        )


def _read_count(num_iterations: Any) -> int:
    try:
        count = operator.index(num_iterations)
    except TypeError:
        count = -1
    if count < 0:
        raise UserError(f"num_iterations is {num_iterations!r}, expected 0, 1, 2, ...")
    return count


def _check_values(
    ranges: tuple[Range, Range, Range], dtype: np.dtype, *, from_logits: bool
) -> None:
    """Checks the ranges of y, of its sums over k, and of an image of some dtype."""
    values, sums, colors = ranges
    largest = np.finfo(np.float32).max  # inference is in float32
    if from_logits and not -largest <= values.low <= values.high <= largest:
        raise UserError("logits that are not finite")
    if not from_logits and not np.isfinite([values.low, values.high]).all():
        raise UserError("probabilities that are not finite")
    if not from_logits and not (
        values.low > -0.01 and 0.99 < sums.low <= sums.high < 1.01
    ):
        raise UserError(
            f"probabilities from {values.low:.3g} to {values.high:.3g} that sum to "
            f"{sums.low:.3g} up to {sums.high:.3g} over the last axis: expected 1 "
            "everywhere; for logits pass from_logits=True"
        )
    if dtype != jnp.uint8 and not -0.01 < colors.low <= colors.high < 1.01:
        raise UserError(
            f"an image of floats from {colors.low:.3g} to {colors.high:.3g}: expected "
            "0 to 1, or uint8"
        )


def _measure_ranges(
    y: Array | np.ndarray, image: Array | np.ndarray
) -> tuple[Range, Range, Range]:
    """Ranges of y, of its sums, and of the image; NumPy's arrays wait for no device."""
    wide = np.float64 if isinstance(y, np.ndarray) else np.float32
    sums = y.sum(axis=-1, dtype=wide)
    return (
        Range(y.min(), y.max()),
        Range(sums.min(), sums.max()),
        Range(image.min(), image.max()),
    )


def _check_scalars(
    widths: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> None:
    for name, width in widths.items():
        least = "at least 1, of 255 levels" if name == "color_width" else "above 0"
        lowest = 1 if name == "color_width" else np.finfo(np.float32).tiny
        if width.ndim or not lowest <= width < np.inf:
            raise UserError(f"{name} is {width.tolist()}: expected a number {least}")
    for name, weight in weights.items():
        if not (np.abs(weight) < _LARGEST_WEIGHT).all():  # nan as well
            raise UserError(f"{name} is {weight.tolist()}: expected finite numbers")


def _is_surely_finite(
    shape: tuple[int, ...], widths: Mapping[str, np.ndarray], *, exact: bool
) -> bool:
    """Whether no image of this size can be too large for its kernels."""
    spatial, bilateral, color = (float(width) for width in widths.values())
    height, width = shape[-3:-1]
    places = np.array([width, height])
    colors = np.full(3, 255 / color)
    features = (places / spatial, np.concatenate([places / bilateral, colors]))
    if exact:
        return all(bool(np.max(f) < _LARGEST_DISTANCE) for f in features)
    return all(map(fits_lattice, features))
