"""The dense CRF as a function of class probabilities and an image."""

import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from iterinf.errors import UserError
from iterinf.inference import refine
from iterinf.ops.logarithm import log_clipped
from iterinf.ops.permutohedral import fits_lattice
from iterinf.refiners.dense_crf import (
    LOWEST_PROBABILITY,
    Weight,
    check_weights,
    make_condition,
    update,
)

_LARGEST_WEIGHT = 1e30  # keeps sums over all pixels finite
_LARGEST_DISTANCE = 1e18  # keeps squares finite


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
    """Refines class probabilities by mean field in a dense CRF; see `DenseCRF`.

        y = softmax(logits)                      # [h w k], of any network
        y = iterinf.dense_crf(y, image)          # image [h w 3]
        labels = y.argmax(-1)

    Compiled once per shape and number of iterations. Can be called inside `jit` and
    `grad`; traced values are not checked. Differentiable once, in reverse mode; with
    `exact` any number of times, in both modes.

    Args:
      probabilities: The class probabilities, [h w k] or [b h w k]; they sum to one over
        k >= 2.
      image: The image, [h w 3] or [b h w 3], RGB, uint8 or floats in [0, 1].
      num_iterations: The number of mean-field updates.
      from_logits: Whether `probabilities` are logits, i.e. any real values. Logits are
        used unchanged, whereas probabilities are clipped at 1e-5.
      spatial_width: The width of the spatial kernel in pixels.
      spatial_weight: The weight of the spatial kernel: a scalar, k values, or a k x k
        matrix of the weight of a neighbour's class (columns) for a class (rows).
      bilateral_width: The spatial width of the bilateral kernel in pixels.
      color_width: The colour width of the bilateral kernel, of 255 levels; at least 1.
      bilateral_weight: The weight of the bilateral kernel, like `spatial_weight`.
      exact: Whether to sum over all pairs of pixels instead of using the lattice; for
        small images.

    Returns:
      The refined probabilities, of the same shape.

    Raises:
      UserError: If a shape or value is invalid.
    """
    y, image = _read("probabilities", probabilities), _read("an image", image)
    _check_shapes(y.shape, image)
    widths = _read_all(
        spatial_width=spatial_width,
        bilateral_width=bilateral_width,
        color_width=color_width,
    )
    weights = _read_all(
        spatial_weight=spatial_weight, bilateral_weight=bilateral_weight
    )
    check_weights(weights, y.shape[-1])
    num_iterations = _read_count(num_iterations)
    arrays = (y, image, widths, weights)
    is_traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays))
    is_finite = True  # whether the result is certain to be finite
    if not is_traced:
        with jax.ensure_compile_time_eval():
            # Waits for the inputs only; the result is still computed asynchronously.
            wide = np.float64 if isinstance(y, np.ndarray) else np.float32
            measured = (y, y.sum(axis=-1, dtype=wide), image)
            ranges, known_widths, known_weights = jax.device_get(
                ([(x.min(), x.max()) for x in measured], widths, weights)
            )
        _check_ranges(ranges, image.dtype, from_logits=from_logits)
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
        raise UserError(f"kernel widths are too small for this image: {given}")
    return refined[0] if is_single else refined


@partial(jax.jit, static_argnums=(4, 5, 6))
def _infer(y, image, widths, weights, num_iterations, from_logits, exact):
    brightest = 255 if image.dtype == jnp.uint8 else 1
    y, widths, weights = jax.tree.map(
        lambda x: x.astype(jnp.float32), (y, widths, weights)
    )
    image = image.astype(jnp.float32) / brightest
    unary = y if from_logits else log_clipped(y, LOWEST_PROBABILITY)
    condition = make_condition(unary, image, *widths, exact=exact)
    refinement = refine(
        lambda y: nn.softmax(update(y, condition, *weights)),
        nn.softmax(unary),
        step_size=1.0,
        num_iterations=num_iterations,
    )
    return refinement.y


def _read(name: str, value: Any) -> Array | np.ndarray:
    """Converts a value to a NumPy array; JAX arrays are returned unchanged."""
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
            f"{name} has type {type(value).__name__}, expected an array of numbers"
        )
    return array


def _read_all(**values: Any) -> dict[str, Array | np.ndarray]:
    return {name: _read(name, value) for name, value in values.items()}


def _check_shapes(shape: tuple[int, ...], image: Array | np.ndarray) -> None:
    if len(shape) not in (3, 4) or image.shape != (*shape[:-1], 3):
        raise UserError(
            f"probabilities have shape {shape} and the image {image.shape}, expected "
            "(h, w, k) and (h, w, 3), or (b, h, w, k) and (b, h, w, 3)"
        )
    if 0 in shape:
        raise UserError(
            f"probabilities have shape {shape}, expected at least one pixel"
        )
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(
            f"the image has dtype {image.dtype}, expected uint8 or floats in [0, 1]"
        )


def _read_count(num_iterations: Any) -> int:
    try:
        count = operator.index(num_iterations)
    except TypeError:
        count = -1
    if count < 0:
        raise UserError(
            f"num_iterations is {num_iterations!r}, expected an integer >= 0"
        )
    return count


def _check_ranges(
    ranges: Sequence[tuple[Any, Any]], dtype: np.dtype, *, from_logits: bool
) -> None:
    """Checks the lowest and highest of y, of its sums over k, and of the image."""
    values, sums, colors = ranges
    largest = np.finfo(np.float32).max  # inference is in float32
    if not -largest <= values[0] <= values[1] <= largest:
        kind = "logits" if from_logits else "probabilities"
        raise UserError(f"{kind} are not finite")
    is_normal = values[0] > -0.01 and 0.99 < sums[0] <= sums[1] < 1.01
    if not from_logits and not is_normal:
        raise UserError(
            f"probabilities are in [{values[0]:.3g}, {values[1]:.3g}] and their sums "
            f"over the last axis in [{sums[0]:.3g}, {sums[1]:.3g}], expected values "
            ">= 0 with sums of 1; for logits pass from_logits=True"
        )
    if dtype != jnp.uint8 and not -0.01 < colors[0] <= colors[1] < 1.01:
        raise UserError(
            f"the image has values in [{colors[0]:.3g}, {colors[1]:.3g}], expected "
            "floats in [0, 1] or uint8"
        )


def _check_scalars(
    widths: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> None:
    for name, width in widths.items():
        least = ">= 1 (of 255 levels)" if name == "color_width" else "> 0"
        lowest = 1 if name == "color_width" else np.finfo(np.float32).tiny
        if width.ndim or not lowest <= width < np.inf:
            raise UserError(f"{name} is {width.tolist()}, expected a number {least}")
    for name, weight in weights.items():
        if not (np.abs(weight) < _LARGEST_WEIGHT).all():  # nan as well
            raise UserError(f"{name} is {weight.tolist()}, expected finite numbers")


def _is_surely_finite(
    shape: tuple[int, ...], widths: Mapping[str, np.ndarray], *, exact: bool
) -> bool:
    """Whether results are finite for every image of this size."""
    spatial, bilateral, color = (float(width) for width in widths.values())
    height, width = shape[-3:-1]
    places = np.array([width, height])
    colors = np.full(3, 255 / color)
    features = (places / spatial, np.concatenate([places / bilateral, colors]))
    if exact:
        return all(bool(np.max(f) < _LARGEST_DISTANCE) for f in features)
    return all(map(fits_lattice, features))
