"""The dense CRF: mean field under Gaussian kernels of position and of colour."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from iterinf.errors import UserError
from iterinf.inference import refine
from iterinf.ops.permutohedral import (
    Lattice,
    build_lattice,
    filter_exactly,
    filter_on_lattice,
)
from iterinf.types import Candidate

_LOWEST_PROBABILITY = 1e-5
_SMALL = 1e-20  # keeps the normalisation of a pixel without neighbours finite

Weight = Float[ArrayLike, "..."]  # [], [k] or [k k]


class Kernel(NamedTuple):
    """A Gaussian of pixels' features, normalised symmetrically."""

    points: Lattice | Float[Array, "*b n d"]  # a lattice, or features, of each pixel
    scale: Float[Array, "*b n"]  # 1 / sqrt(the sum of the Gaussian over all pixels)


class Condition(NamedTuple):
    """What mean field needs of a batch, computed once."""

    unary: Float[Array, "b h w k"]  # log-probabilities, up to a constant a pixel
    spatial: Kernel  # one for all images
    bilateral: Kernel  # of every image


class DenseCRF(nn.Module):
    """Mean-field updates of a fully connected CRF.

    r(y)_i = softmax(u_i + sum_m W_m sum_j k_m(i, j) y_j)

    with unaries u = log y of the segmenter and two kernels m, each normalised by
    1 / sqrt(sum_j k(i, j)) at i and at j:

      spatial:   exp(-|p_i - p_j|^2 / (2 spatial_width^2))
      bilateral: exp(-|p_i - p_j|^2 / (2 bilateral_width^2)
                     - |c_i - c_j|^2 / (2 color_width^2))

    j = i is part of the sum, as in the authors' code. It has no training: widths and
    weights are variables, so that validation can choose them without compiling anew.

    Attributes:
      num_classes: K, at least 2.
      feature_offset: not read; features are.
      dtype: not read; all is float32.
      spatial_width: pixels.
      spatial_weight: W of the kernel: a number (Potts), K of them (diagonal), or K rows
        of K, how much class b at j speaks for class a at i.
      bilateral_width: pixels.
      color_width: of 255 levels.
      bilateral_weight: as `spatial_weight`.
      exact: sums over all pairs of pixels, for small images, in place of the lattice.

    Source: Kraehenbuehl & Koltun 2011, "Efficient Inference in Fully Connected CRFs
      with Gaussian Edge Potentials", Eq. 3 and algorithm 1; defaults as in
      pydensecrf's README.
    """

    num_classes: int
    feature_offset: int = 0
    dtype: DTypeLike = jnp.float32
    spatial_width: float = 3.0
    spatial_weight: float | tuple = 3.0
    bilateral_width: float = 80.0
    color_width: float = 13.0
    bilateral_weight: float | tuple = 10.0
    exact: bool = False

    def setup(self):
        """Creates the variables: widths and weights."""

        def create(name: str) -> Array:
            return self.param(name, lambda _: jnp.asarray(getattr(self, name), float))

        self.widths = [
            create(name) for name in ("spatial_width", "bilateral_width", "color_width")
        ]
        self.weights = [create("spatial_weight"), create("bilateral_weight")]

    def __call__(
        self, candidate: Candidate, *, train: bool = False
    ) -> Float[Array, "b h w k"]:
        """One update of the candidate."""
        return self.reconstruct(candidate.y, self.condition(candidate, train=train))

    def condition(self, candidate: Candidate, *, train: bool = False) -> Condition:
        """Builds unaries and lattices."""
        del train
        unary = compute_unary(candidate.y)
        return make_condition(unary, candidate.image, *self.widths, exact=self.exact)

    def reconstruct(
        self, y: Float[Array, "b h w k"], condition: Condition
    ) -> Float[Array, "b h w k"]:
        """One mean-field update; all pixels at once.

        Args:
          y: class probabilities.
          condition: from `condition`, for the same images.
        """
        return update(y, condition, *self.weights)


def compute_unary(y: Float[Array, "*n k"]) -> Float[Array, "*n k"]:
    """The logarithm of y, clipped to at least 1e-5."""
    return jnp.log(jnp.clip(y, _LOWEST_PROBABILITY, 1.0))


def make_condition(
    unary: Float[Array, "b h w k"],
    image: Float[Array, "b h w 3"],
    spatial_width: Float[ArrayLike, ""],
    bilateral_width: Float[ArrayLike, ""],
    color_width: Float[ArrayLike, ""],
    *,
    exact: bool = False,
) -> Condition:
    """Builds the kernels; see `DenseCRF` for the arguments.

    Differentiable in unaries, image and widths; on the lattice, whose weights are
    piecewise linear in the features, almost everywhere.
    """
    places, colors = make_features(image)

    def make_kernel(features: Float[Array, "n d"]) -> Kernel:
        points = features if exact else build_lattice(features)
        total = _sum_over_pixels(points, jnp.ones_like(features[:, :1]))
        return Kernel(points, jax.lax.rsqrt(total[:, 0] + _SMALL))

    def make_bilateral(colors: Float[Array, "n 3"]) -> Kernel:
        scaled = [places / bilateral_width, colors / color_width]
        return make_kernel(jnp.concatenate(scaled, axis=1))

    return Condition(
        unary=unary,
        spatial=make_kernel(places / spatial_width),
        bilateral=jax.lax.map(make_bilateral, colors),
    )


def make_features(
    image: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "n 2"], Float[Array, "b n 3"]]:
    """Positions of the pixels, and their colours, 0 to 255."""
    b, height, width = image.shape[:3]
    rows, columns = jnp.mgrid[:height, :width]
    places = jnp.stack([columns, rows], axis=-1).reshape(-1, 2).astype(jnp.float32)
    return places, 255 * image.reshape(b, -1, 3)


def compute_messages(
    y: Float[Array, "b h w k"], condition: Condition
) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w k"]]:
    """Sums the probabilities of all pixels under the spatial and bilateral kernel."""
    b, height, width, k = y.shape
    pixels = y.reshape(b, -1, k)
    side_by_side = jnp.moveaxis(pixels, 0, 1).reshape(-1, b * k)
    spatial = _apply_kernel(condition.spatial, side_by_side)
    spatial = jnp.moveaxis(spatial.reshape(-1, b, k), 1, 0)
    bilateral = jax.lax.map(
        lambda inputs: _apply_kernel(*inputs), (condition.bilateral, pixels)
    )
    return spatial.reshape(y.shape), bilateral.reshape(y.shape)


def _apply_kernel(kernel: Kernel, values: Float[Array, "n c"]) -> Float[Array, "n c"]:
    scale = kernel.scale[:, None]
    return scale * _sum_over_pixels(kernel.points, scale * values)


def _sum_over_pixels(
    points: Lattice | Float[Array, "n d"], values: Float[Array, "n c"]
) -> Float[Array, "n c"]:
    if isinstance(points, Lattice):
        return filter_on_lattice(points, values)
    return filter_exactly(points, values)


def update(
    y: Float[Array, "b h w k"],
    condition: Condition,
    spatial_weight: Weight,
    bilateral_weight: Weight,
) -> Float[Array, "b h w k"]:
    """One mean-field update; see `DenseCRF`."""
    spatial, bilateral = compute_messages(y, condition)
    return nn.softmax(
        condition.unary
        + weigh(spatial, spatial_weight)
        + weigh(bilateral, bilateral_weight)
    )


def weigh(message: Float[Array, "b h w k"], weight: Weight) -> Array:
    """Applies a Potts, diagonal or full compatibility."""
    subscripts = {0: "bhwi,->bhwi", 1: "bhwi,i->bhwi", 2: "bhwj,ij->bhwi"}
    subscript = subscripts[jnp.ndim(weight)]
    return jnp.einsum(subscript, message, weight, precision="highest")


def dense_crf(
    probabilities: Array | np.ndarray,
    image: Array | np.ndarray,
    num_iterations: int = 10,
    *,
    from_logits: bool = False,
    spatial_width: Float[ArrayLike, ""] = 3.0,
    spatial_weight: Weight = 3.0,
    bilateral_width: Float[ArrayLike, ""] = 80.0,
    color_width: Float[ArrayLike, ""] = 13.0,
    bilateral_weight: Weight = 10.0,
    exact: bool = False,
) -> Float[Array, "*b h w k"]:
    """Refines a softmax by the mean field of a dense CRF; see `DenseCRF`.

        y = softmax(logits)                      # [h w k], of any network
        y = iterinf.dense_crf(y, image)          # image [h w 3]
        labels = y.argmax(-1)

    Compiled once for every shape and number of iterations. Can be called inside `jit`
    and `grad`; values are not checked there.

    Args:
      probabilities: [h w k] or [b h w k]; sum to one over k >= 2.
      image: [h w 3] or [b h w 3], RGB, uint8 or floats in [0, 1].
      num_iterations: mean-field updates.
      from_logits: whether `probabilities` are logits instead: any real values. They
        are taken as they are, where probabilities are clipped to at least 1e-5.
      spatial_width: of the Gaussian kernel, in pixels.
      spatial_weight: a number, k of them, or a k x k matrix: how much class b of a
        neighbour (columns) speaks for class a (rows).
      bilateral_width: of the kernel of position and colour, in pixels.
      color_width: of that kernel, of 255 levels.
      bilateral_weight: as `spatial_weight`.
      exact: sums over all pairs of pixels in place of the lattice: for small images.

    Returns:
      Probabilities, of the shape given.

    Raises:
      UserError: shapes or values that cannot be.
    """
    y, image = jnp.asarray(probabilities), jnp.asarray(image)
    _check_shapes(y.shape, image)
    weights = {"spatial_weight": spatial_weight, "bilateral_weight": bilateral_weight}
    _check_weights(weights, y.shape[-1])
    widths = [spatial_width, bilateral_width, color_width]
    numbers = (y, image, *widths)
    if not any(isinstance(number, jax.core.Tracer) for number in numbers):
        _check_values(y, image, widths, from_logits=from_logits)
    is_single = y.ndim == 3
    if is_single:
        y, image = y[None], image[None]
    if image.dtype == jnp.uint8:
        image = image / jnp.float32(255)
    refined = _infer(
        y.astype(jnp.float32),
        image.astype(jnp.float32),
        [jnp.asarray(width, jnp.float32) for width in widths],
        [jnp.asarray(weight, jnp.float32) for weight in weights.values()],
        num_iterations,
        from_logits,
        exact,
    )
    if not isinstance(refined, jax.core.Tracer) and jnp.any(jnp.isnan(refined)):
        raise UserError(f"kernels of widths {widths} are too narrow for this image")
    return refined[0] if is_single else refined


@partial(jax.jit, static_argnums=(4, 5, 6))
def _infer(y, image, widths, weights, num_iterations, from_logits, exact):
    unary = y if from_logits else compute_unary(y)
    condition = make_condition(unary, image, *widths, exact=exact)
    refinement = refine(
        lambda y: update(y, condition, *weights),
        nn.softmax(y) if from_logits else y,
        step_size=1.0,
        num_iterations=num_iterations,
    )
    return refinement.y


def _check_shapes(shape: tuple[int, ...], image: Array) -> None:
    if len(shape) not in (3, 4) or image.shape != (*shape[:-1], 3):
        raise UserError(
            f"probabilities of shape {shape} and an image of shape {image.shape}: "
            "expected [h w k] and [h w 3], or [b h w k] and [b h w 3]"
        )
    if 0 in shape:
        raise UserError(f"probabilities of shape {shape}: there is no pixel")
    if shape[-1] < 2:
        raise UserError(
            "probabilities of one class: expected 2 or more; for foreground p, stack "
            "1 - p and p"
        )
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(
            f"an image of {image.dtype}: expected uint8, or floats in [0, 1]"
        )


def _check_weights(weights: dict[str, Weight], k: int) -> None:
    for name, weight in weights.items():
        if jnp.shape(weight) not in ((), (k,), (k, k)):
            raise UserError(
                f"{name} of shape {jnp.shape(weight)}: expected a number, {k} of them, "
                f"or {k} x {k}"
            )


def _check_values(
    y: Array, image: Array, widths: list[Float[ArrayLike, ""]], *, from_logits: bool
) -> None:
    if from_logits and not jnp.all(jnp.isfinite(y)):
        raise UserError("logits that are not finite")
    total = jnp.sum(y.astype(jnp.float32), axis=-1)
    if not from_logits and not (jnp.all(jnp.abs(total - 1) < 0.01) and y.min() >= 0):
        raise UserError(
            f"probabilities from {y.min():.3g} to {y.max():.3g} that sum to "
            f"{total.min():.3g} up to {total.max():.3g} over the last axis: expected 1 "
            "everywhere; for logits pass from_logits=True"
        )
    low, high = float(image.min()), float(image.max())
    if image.dtype != jnp.uint8 and not 0 <= low <= high <= 1:
        raise UserError(
            f"an image of floats from {low:.3g} to {high:.3g}: expected 0 to 1, or "
            "uint8"
        )
    for width in np.asarray(widths).tolist():
        if not 0 < width < np.inf:
            raise UserError(f"a kernel of width {width}: expected more than 0")
