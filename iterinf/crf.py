"""The dense CRF as one call: a softmax and an image in, probabilities out."""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from iterinf.errors import UserError
from iterinf.inference import refine
from iterinf.refiners.dense_crf import (
    Weight,
    check_weights,
    compute_unary,
    make_condition,
    update,
)


def dense_crf(
    probabilities: Array | np.ndarray,
    image: Array | np.ndarray,
    num_iterations: int = 10,
    *,
    from_logits: bool = False,
    spatial_width: Float[ArrayLike, "..."] = 3.0,
    spatial_weight: Weight = 3.0,
    bilateral_width: Float[ArrayLike, "..."] = 80.0,
    color_width: Float[ArrayLike, "..."] = 13.0,
    bilateral_weight: Weight = 10.0,
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
    numbers = (y, image, *widths.values(), *weights.values())
    if not any(isinstance(number, jax.core.Tracer) for number in numbers):
        with jax.ensure_compile_time_eval():
            _check_values(y, image, from_logits=from_logits)
            _check_numbers(widths, weights)
    is_single = y.ndim == 3
    if is_single:
        y, image = y[None], image[None]
    if image.dtype == jnp.uint8:
        image = image / jnp.float32(255)
    refined = _infer(
        y.astype(jnp.float32),
        image.astype(jnp.float32),
        [width.astype(jnp.float32) for width in widths.values()],
        [weight.astype(jnp.float32) for weight in weights.values()],
        num_iterations,
        from_logits,
        exact,
    )
    if not isinstance(refined, jax.core.Tracer) and jnp.any(jnp.isnan(refined)):
        given = ", ".join(f"{name} {width:g}" for name, width in widths.items())
        raise UserError(f"kernels too narrow for this image: {given}")
    return refined[0] if is_single else refined


@partial(jax.jit, static_argnums=(4, 5, 6))
def _infer(y, image, widths, weights, num_iterations, from_logits, exact):
    unary = y if from_logits else compute_unary(y)
    condition = make_condition(unary, image, *widths, exact=exact)
    refinement = refine(
        lambda y: nn.softmax(update(y, condition, *weights)),
        nn.softmax(unary),
        step_size=1.0,
        num_iterations=num_iterations,
    )
    return refinement.y


def _read(name: str, value: Any) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{name} of type {type(value).__name__}: expected numbers, in an array or "
            "what makes one"
        ) from None


def _check_shapes(shape: tuple[int, ...], image: Array) -> None:
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


def _check_values(y: Array, image: Array, *, from_logits: bool) -> None:
    ranges = jax.device_get(_measure_ranges(y, image))
    (low, high), (low_sum, high_sum), (dark, bright) = ranges
    if from_logits and not np.isfinite([low, high]).all():
        raise UserError("logits that are not finite")
    if not from_logits and not (low > -0.01 and 0.99 < low_sum <= high_sum < 1.01):
        raise UserError(
            f"probabilities from {low:.3g} to {high:.3g} that sum to {low_sum:.3g} up "
            f"to {high_sum:.3g} over the last axis: expected 1 everywhere; for logits "
            "pass from_logits=True"
        )
    if image.dtype != jnp.uint8 and not -0.01 < dark <= bright < 1.01:
        raise UserError(
            f"an image of floats from {dark:.3g} to {bright:.3g}: expected 0 to 1, or "
            "uint8"
        )


@jax.jit
def _measure_ranges(y, image):
    arrays = (y, jnp.sum(y.astype(jnp.float32), axis=-1), image)
    return [(array.min(), array.max()) for array in arrays]


def _check_numbers(widths: Mapping[str, Array], weights: Mapping[str, Array]) -> None:
    for name, width in widths.items():
        least = "at least 1, of 255 levels" if name == "color_width" else "above 0"
        lowest = 1 if name == "color_width" else np.finfo(np.float32).tiny
        if width.ndim or not lowest <= width < np.inf:
            raise UserError(f"{name} is {width.tolist()}: expected a number {least}")
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"{name} is {weight.tolist()}: expected finite numbers")
