"""CRF-RNN: the dense CRF with learned kernel weights and compatibility."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.refiners.dense_crf import (
    Condition,
    check_weights,
    compute_messages,
    compute_unary,
    make_condition,
    weigh,
)
from iterinf.refiners.refiner import Refiner
from iterinf.types import Candidate

_LOWEST_PROBABILITY = 1e-20
_LEAST_WIDTH = 0.1


class CRFRNN(Refiner):
    """Mean-field updates whose weights are trained through the iterations.

    r(y)_i = softmax(u_i + C sum_m w_m * sum_j k_m(i, j) y_j)

    with unaries and kernels of `DenseCRF`, weights w_m a class (*: class by class) and
    a K x K matrix C for both kernels, which starts as the identity: training starts
    from the dense CRF of the same weights. 2 K + K^2 + 3 parameters, the widths among
    them. Unaries are log y down to 1e-20, so that gradients reach a segmenter trained
    with it. Kernels are normalised at both ends, where Zheng et al. divide afterwards.
    They, and the paper, train it together with the segmenter: `end_to_end`.

    Attributes:
      num_classes: K, at least 2.
      dtype: unused: all is float32.
      spatial_width: pixels.
      spatial_weight: where that kernel's weights start.
      bilateral_width: pixels.
      color_width: of 255 levels.
      bilateral_weight: where that kernel's weights start.
      learn_widths: whether gradients reach the widths, which Zheng et al. keep; none
        is then taken to be below .1. The lattice is piecewise linear
        in them, and its pieces are small: gradients are right, and rough; those of
        `exact` are smooth.
      exact: see `DenseCRF`.

    Source: Zheng et al. 2015, "Conditional Random Fields as Recurrent Neural
      Networks", section 4; defaults as in the authors' code.
    """

    spatial_width: float = 3.0
    spatial_weight: float = 3.0
    bilateral_width: float = 160.0
    color_width: float = 3.0
    bilateral_weight: float = 5.0
    learn_widths: bool = False
    exact: bool = False

    def setup(self):
        """Creates the widths, the weights and the compatibility."""
        check_weights({}, self.num_classes)

        def create(name: str, *shape: int) -> Array:
            return self.param(
                name, nn.initializers.constant(getattr(self, name)), shape
            )

        widths = [
            create(name) for name in ("spatial_width", "bilateral_width", "color_width")
        ]
        self.widths = (
            [jnp.maximum(width, _LEAST_WIDTH) for width in widths]
            if self.learn_widths
            else jax.lax.stop_gradient(widths)
        )
        self.spatial = create("spatial_weight", self.num_classes)
        self.bilateral = create("bilateral_weight", self.num_classes)
        self.compatibility = self.param(
            "compatibility", lambda _: jnp.eye(self.num_classes)
        )

    def condition(self, candidate: Candidate, *, train: bool = False) -> Condition:
        """Builds unaries and lattices."""
        del train
        unary = compute_unary(candidate.y, lowest=_LOWEST_PROBABILITY)
        return make_condition(unary, candidate.image, *self.widths, exact=self.exact)

    def compute_logits(
        self, y: Float[Array, "b h w k"], condition: Condition
    ) -> Float[Array, "b h w k"]:
        """One mean-field update of all pixels; see `Refiner.compute_logits`."""
        spatial, bilateral = compute_messages(y, condition)
        message = weigh(spatial, self.spatial) + weigh(bilateral, self.bilateral)
        return condition.unary + weigh(message, self.compatibility)
