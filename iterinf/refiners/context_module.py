"""The context module: dilated convolutions of a segmentation."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iterinf.errors import check_known
from iterinf.refiners.refiner import Refiner
from iterinf.types import Candidate

_DILATIONS = (1, 1, 2, 4, 8, 16, 1)
_LOWEST_PROBABILITY = 1e-4


class ContextModule(Refiner):
    """Seven 3x3 convolutions of dilations 1 1 2 4 8 16 1 and one of 1x1, K channels.

    r(y, x) = softmax(conv_1x1(layers(a(y), x))), with ReLU after each 3x3 convolution.
    The receptive field is 67x67. Kernels are initialised as the identity,

      W[s, t, a, b] = [s = t = centre] [a = b],

    so that on a(y) = log(max(y, 1e-4) / 1e-4) >= 0 the module initially returns y.
    7,832 parameters for 11 classes, or 8,129 with the image.

    Attributes:
      dtype: Unused; all computations are float32, since bfloat16 would change labels.
      inputs: The input: "log_probabilities" for a(y), or "probabilities" for y (as
        released in 2017; the module then initially returns softmax(y)).
      use_image: Whether the first layer also reads the image, with weights initially
        zero.
      first_init: The initialisation of the first layer: "identity" or "glorot" (as
        released in 2017).
      padding: The zero padding: "same" pads the input of every layer, "once" only that
        of the second layer (as released in 2017).

    Source: Yu & Koltun 2016, "Multi-Scale Context Aggregation by Dilated Convolutions",
      section 3, basic.
    """

    inputs: str = "log_probabilities"
    use_image: bool = False
    first_init: str = "identity"
    padding: str = "same"

    def __post_init__(self):
        check_known("inputs", self.inputs, ("log_probabilities", "probabilities"))
        check_known("first_init", self.first_init, ("identity", "glorot"))
        check_known("padding", self.padding, ("same", "once"))
        super().__post_init__()

    def setup(self):
        """Creates the convolutions; the first is the sum of those of y and image."""
        k = self.num_classes

        def convolution(dilation, size=3, **options):
            options = {"kernel_init": init_as_identity} | options
            shape = {"kernel_size": (size, size), "kernel_dilation": dilation}
            return nn.Conv(
                k, dtype=jnp.float32, precision="highest", **shape, **options
            )

        def draw(key, shape, dtype):
            """Draws Glorot weights for all input channels, and returns `shape[2]`."""
            channels = k + 3 if self.use_image else k
            glorot = nn.initializers.glorot_uniform()
            return glorot(key, (3, 3, channels, k), dtype)[:, :, : shape[2]]

        random = {"kernel_init": draw} if self.first_init == "glorot" else {}
        first, *others = _DILATIONS
        self.first = convolution(first, **random)
        if self.use_image:
            zeros = {"kernel_init": nn.initializers.zeros}
            self.first_of_image = convolution(first, use_bias=False, **zeros | random)
        padding = "SAME" if self.padding == "same" else "VALID"
        self.layers = [convolution(dilation, padding=padding) for dilation in others]
        self.last = convolution(1, size=1)

    def condition(self, candidate: Candidate) -> Array | float:
        """Computes the image's part of the first layer, 0 if the image is not read."""
        return self.first_of_image(candidate.image) if self.use_image else 0.0

    def compute_logits(
        self, y: Float[Array, "b h w k"], condition: Array | float
    ) -> Float[Array, "b h w k"]:
        """Applies the convolutions to y; see `Refiner.compute_logits`."""
        if self.inputs == "log_probabilities":
            y = jnp.log(jnp.clip(y, _LOWEST_PROBABILITY, 1.0) / _LOWEST_PROBABILITY)
        x = nn.relu(self.first(y) + condition)
        if self.padding == "once":
            border = sum(_DILATIONS[1:])
            x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
        for layer in self.layers:
            x = nn.relu(layer(x))
        return self.last(x)


def init_as_identity(key, shape, dtype=jnp.float32) -> Float[Array, "s t a b"]:
    """Initialises a kernel [s t a b] as the identity."""
    del key
    kernel = np.zeros(shape)
    kernel[shape[0] // 2, shape[1] // 2] = np.eye(*shape[2:])
    return jnp.asarray(kernel, dtype)
