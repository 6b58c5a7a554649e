"""CRF-RNN: the dense CRF with learned kernel weights and compatibility."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.ops.logarithm import log_clipped
from iterinf.refiners.dense_crf import (
    Condition,
    check_weights,
    compute_messages,
    make_condition,
    weigh,
)
from iterinf.refiners.refiner import Refiner
from iterinf.types import Candidate

_LOWEST_PROBABILITY = 1e-20


class CRFRNN(Refiner):
    """Mean-field updates whose weights are trained through the iterations.

    r(y)_i = softmax(u_i + C sum_m w_m * sum_j k_m(i, j) y_j)

    with the unaries and kernels of `DenseCRF`, weights w_m per class (* is elementwise)
    and a K x K compatibility matrix C shared by both kernels, initially the identity:
    training starts from the dense CRF with the same weights. There are 2 K + K^2 + 3
    parameters, including the widths, which are not trained. Unaries are log y clipped
    at 1e-20, so that gradients reach a segmenter trained jointly. Kernels are
    normalised symmetrically, whereas Zheng et al. divide afterwards. They, and the
    paper, train it jointly with the segmenter (`end_to_end`).

    Attributes:
      spatial_weight: The initial weights of the spatial kernel.
      bilateral_weight: The initial weights of the bilateral kernel.
      exact: See `DenseCRF`, also for the other attributes.

    Source: Zheng et al. 2015, "Conditional Random Fields as Recurrent Neural
      Networks", section 4; defaults as in the authors' code.
    """

    spatial_width: float = 3.0
    spatial_weight: float = 3.0
    bilateral_width: float = 160.0
    color_width: float = 3.0
    bilateral_weight: float = 5.0
    exact: bool = False

    def setup(self):
        """Creates the widths, the weights and the compatibility."""
        check_weights({}, self.num_classes)

        def create(name: str, *shape: int) -> Array:
            return self.param(
                name, nn.initializers.constant(getattr(self, name)), shape
            )

        names = ("spatial_width", "bilateral_width", "color_width")
        self.widths = jax.lax.stop_gradient([create(name) for name in names])
        self.spatial = create("spatial_weight", self.num_classes)
        self.bilateral = create("bilateral_weight", self.num_classes)
        self.compatibility = self.param(
            "compatibility", lambda _: jnp.eye(self.num_classes)
        )

    def condition(self, candidate: Candidate) -> Condition:
        """Builds unaries and lattices."""
        unary = log_clipped(candidate.y, _LOWEST_PROBABILITY)
        return make_condition(unary, candidate.image, *self.widths, exact=self.exact)

    def compute_logits(
        self, y: Float[Array, "b h w k"], condition: Condition
    ) -> Float[Array, "b h w k"]:
        """Computes one mean-field update; see `Refiner.compute_logits`."""
        spatial, bilateral = compute_messages(y, condition)
        message = weigh(spatial, self.spatial) + weigh(bilateral, self.bilateral)
        return condition.unary + weigh(message, self.compatibility)
