"""The dense CRF: mean field with Gaussian kernels of position and colour."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from iterinf.errors import UserError
from iterinf.ops.batching import map_images
from iterinf.ops.logarithm import log_clipped
from iterinf.ops.permutohedral import (
    Lattice,
    build_lattice,
    filter_exactly,
    filter_on_lattice,
)
from iterinf.refiners.refiner import Refiner
from iterinf.types import Candidate

LOWEST_PROBABILITY = 1e-5
_SMALL = 1e-20  # keeps the normalisation of a pixel without neighbours finite

Weight = Float[ArrayLike, "..."]  # [], [k] or [k k]


class Kernel(NamedTuple):
    """A Gaussian kernel of pixel features, normalised symmetrically."""

    points: Lattice | Float[Array, "*b n d"]  # lattice or features of the pixels
    scale: Float[Array, "*b n"]  # 1 / sqrt(sum of the Gaussian over all pixels)


class Condition(NamedTuple):
    """The unaries and kernels of a batch, computed once."""

    unary: Float[Array, "b h w k"]  # log-probabilities, up to a constant per pixel
    spatial: Kernel  # shared by all images
    bilateral: Kernel  # per image


class DenseCRF(Refiner):
    """Mean-field updates of a fully connected CRF.

    r(y)_i = softmax(u_i + sum_m W_m sum_j k_m(i, j) y_j)

    with unaries u = log y of the segmenter and two kernels m, each normalised by
    1 / sqrt(sum_j k(i, j)) at i and at j:

      spatial:   exp(-|p_i - p_j|^2 / (2 spatial_width^2))
      bilateral: exp(-|p_i - p_j|^2 / (2 bilateral_width^2)
                     - |c_i - c_j|^2 / (2 color_width^2))

    The sum includes j = i, as in the authors' code. The CRF is not trained: widths and
    weights are variables so that validation can choose them without recompilation.

    The result is equivariant to permutations of the classes and, with `exact`, to flips
    and transposition of the image; with the permutohedral lattice only approximately
    (99.8% of the labels agree), because its kernel matrix is not symmetric.

    Attributes:
      num_classes: The number of classes K, at least 2.
      dtype: Unused; all computations are float32.
      spatial_width: The width of the spatial kernel in pixels.
      spatial_weight: The weight W of the spatial kernel: a scalar (Potts), K values
        (diagonal), or a K x K matrix, the weight of class b at j for class a at i.
      bilateral_width: The spatial width of the bilateral kernel in pixels.
      color_width: The colour width of the bilateral kernel, of 255 levels.
      bilateral_weight: The weight of the bilateral kernel, like `spatial_weight`.
      exact: Whether to sum over all pairs of pixels instead of using the lattice; for
        small images.

    Source: Kraehenbuehl & Koltun 2011, "Efficient Inference in Fully Connected CRFs
      with Gaussian Edge Potentials", Eq. 3 and algorithm 1; defaults as in
      pydensecrf's README.
    """

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

        weights = ("spatial_weight", "bilateral_weight")
        check_weights({name: getattr(self, name) for name in weights}, self.num_classes)
        widths = ("spatial_width", "bilateral_width", "color_width")
        self.widths = [create(name) for name in widths]
        self.weights = [create(name) for name in weights]

    def condition(self, candidate: Candidate) -> Condition:
        """Builds unaries and lattices."""
        unary = log_clipped(candidate.y, LOWEST_PROBABILITY)
        return make_condition(unary, candidate.image, *self.widths, exact=self.exact)

    def compute_logits(
        self, y: Float[Array, "b h w k"], condition: Condition
    ) -> Float[Array, "b h w k"]:
        """Computes one mean-field update; see `Refiner.compute_logits`."""
        return update(y, condition, *self.weights)


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

    Differentiable in unaries, image and widths. The lattice's weights are piecewise
    linear in the features: differentiable almost everywhere, once, in reverse mode.
    """
    places, colors = make_features(image)

    def make_kernel(features: Float[Array, "n d"]) -> Kernel:
        points = features if exact else build_lattice(features)
        total = _sum_over_pixels(points, jnp.ones_like(features[:, :1]))
        return Kernel(points, jax.lax.rsqrt(total[:, 0] + _SMALL))

    def make_bilateral(colors: Float[Array, "n 3"], places: Float[Array, "n 2"]):
        return make_kernel(jnp.concatenate([places, colors], axis=1))

    return Condition(
        unary=unary,
        spatial=make_kernel(places / spatial_width),
        bilateral=map_images(
            make_bilateral, colors / color_width, places / bilateral_width
        ),
    )


def make_features(
    image: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "n 2"], Float[Array, "b n 3"]]:
    """Returns the positions of the pixels, and their colours in [0, 255]."""
    b, height, width = image.shape[:3]
    rows, columns = jnp.mgrid[:height, :width]
    places = jnp.stack([columns, rows], axis=-1).reshape(-1, 2).astype(jnp.float32)
    return places, 255 * image.reshape(b, -1, 3)


def compute_messages(
    y: Float[Array, "b h w k"], condition: Condition
) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w k"]]:
    """Filters the probabilities with the spatial and the bilateral kernel."""
    b, height, width, k = y.shape
    pixels = y.reshape(b, -1, k)
    side_by_side = jnp.moveaxis(pixels, 0, 1).reshape(-1, b * k)
    spatial = _apply_kernel(condition.spatial, side_by_side)
    spatial = jnp.moveaxis(spatial.reshape(-1, b, k), 1, 0)
    bilateral = map_images(
        lambda inputs, _: _apply_kernel(*inputs), (condition.bilateral, pixels), ()
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
    """Computes the logits of one mean-field update; see `DenseCRF`."""
    spatial, bilateral = compute_messages(y, condition)
    return (
        condition.unary
        + weigh(spatial, spatial_weight)
        + weigh(bilateral, bilateral_weight)
    )


def weigh(message: Float[Array, "b h w k"], weight: Weight) -> Array:
    """Applies a Potts, diagonal or full compatibility."""
    subscripts = {0: "bhwi,->bhwi", 1: "bhwi,i->bhwi", 2: "bhwj,ij->bhwi"}
    subscript = subscripts[jnp.ndim(weight)]
    return jnp.einsum(subscript, message, weight, precision="highest")


def check_weights(weights: Mapping[str, Any], k: int) -> None:
    """Checks the number k of classes and the shapes of the weights, by name."""
    if k < 2:
        raise UserError(
            "probabilities have 1 class, expected at least 2; for a foreground "
            "probability p, stack 1 - p and p"
        )
    for name, weight in weights.items():
        if jnp.shape(weight) not in ((), (k,), (k, k)):
            raise UserError(
                f"{name} has shape {jnp.shape(weight)}, expected (), ({k},) or "
                f"({k}, {k})"
            )
