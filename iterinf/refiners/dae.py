"""The conditional denoising autoencoder r(y, h) of the paper."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.errors import UserError, check_known
from iterinf.ops.convolutions import cast_all_but_bias
from iterinf.ops.logarithm import log_clipped
from iterinf.ops.switches import max_pool_with_switches, max_unpool, pad_to
from iterinf.ops.ties import max_pool_with_ties, max_unpool_ties
from iterinf.refiners.refiner import Refiner
from iterinf.types import Candidate, Size

_FEATURE_LEVELS = {"input": 0} | {f"pool{level}": level for level in range(1, 6)}
_LOWEST_PROBABILITY = 1e-4
_POOLING = {
    "first": (max_pool_with_switches, max_unpool),
    "tied": (max_pool_with_ties, max_unpool_ties),
}


class Condition(NamedTuple):
    """What is constant over iterations, computed once per image."""

    contributions: dict[str, Float[Array, "b _ _ _"]]  # W_h * h, by name of h's layer
    log_y: Float[Array, "b h w k"] | None  # of the first y; None: not read


class DAE(Refiner):
    """Pools y with switches, joins h, and unpools by the switches to the size of y.

    Down, level l = 1..L: 3x3 convolution to widths[l-1], ReLU, 2x2 max pooling with
    switches. Up, l = L..1: unpooling by the switches of level l, 3x3 convolution to
    widths[l-2] (classes at l = 1), ReLU except after the last. Softmax.
    The convolution after the l-th pooling also reads the feature map of pool l (the
    first convolution, "input"). A convolution of a concatenation is a sum of two
    convolutions, so that of h is computed in `condition`.
    55,019,787 parameters for 11 classes and h = pool4 of 512 channels.

    Attributes:
      widths: The channels of the L levels.
      features: The layers of h: input, pool1..pool5, below level L; may be empty.
      feature_offset: See `Refiner`; y is padded by it on all sides, and cropped back.
      reads_y: False replaces y by the uniform distribution, in training and at test,
        a control for the contribution of y. Switches then carry nothing, so where h is
        coarse (pool4 alone, no skip connections) it underestimates what h gives.
      decoder: "unpool" (by switches) or "transposed" (2x2 transposed convolutions of
        stride 2 in place of unpooling: the ablation of section 4.3).
      unpool_fill: The fraction of a value that unpooling also writes to the other three
        positions of its window; 0 as published, which makes speckled label maps
        (docs/method.md).
      relu_decoder: Whether the upsampling path has ReLU; False as released in 2017.
      skip_connections: Whether to add the output of pooling l - 1 to up-level l, before
        ReLU.
      full_size_skip: Whether to add the output of the first convolution and ReLU to the
        input of the last convolution.
      start_as_identity: Whether the last convolution starts at zero and adds to log y,
        so that training starts from r(y) = y.
      anchored: Whether it adds to log y_0, of the initial prediction, in all
        iterations, like a CRF's unary term. Training is the same; otherwise every
        iteration adds the same correction again, so that long loops saturate.
      switches: "first" (the first of equal maxima is the switch) or "tied" (all are, as
        released in 2017).
      switch_noise: The standard deviation of Gaussian noise on y in separate passes,
        one per level, from which the switches are taken, in training and at test (.5 as
        released in 2017). Its key is computed from y, so that r is a pure function.

    Source: paper, section 4.3.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    features: tuple[str, ...] = ("pool4",)
    reads_y: bool = True
    decoder: str = "unpool"
    unpool_fill: float = 0.0
    relu_decoder: bool = True
    skip_connections: bool = False
    full_size_skip: bool = False
    start_as_identity: bool = False
    anchored: bool = False
    switches: str = "first"
    switch_noise: float = 0.0

    def __post_init__(self):
        check_known("decoder", self.decoder, ("unpool", "transposed"))
        check_known("switches", self.switches, _POOLING)
        num_levels = len(self.widths)
        for name in self.features:
            known = list(_FEATURE_LEVELS)[:num_levels]
            check_known(f"feature of a DAE of {num_levels} levels", name, known)
        super().__post_init__()

    def setup(self):
        """Creates the convolutions; level l joins h with the input of level l + 1."""
        dtypes: dict = {"dtype": self.dtype, "promote_dtype": cast_all_but_bias}

        def convolution(channels, **options):
            options = {"kernel_init": nn.initializers.he_uniform()} | options
            return nn.Conv(channels, (3, 3), **dtypes, **options)

        self.down = [convolution(width) for width in self.widths]
        self.join = {
            name: convolution(self.widths[_FEATURE_LEVELS[name]], use_bias=False)
            for name in self.features
        }
        last: dict = {"kernel_init": nn.initializers.glorot_uniform()}
        if self.start_as_identity:
            last = {"kernel_init": nn.initializers.zeros}
        self.up = [convolution(width) for width in self.widths[-2::-1]] + [
            convolution(self.num_classes, **last)
        ]
        if self.decoder == "transposed":
            self.expand = [
                nn.ConvTranspose(width, (2, 2), (2, 2), **dtypes)
                for width in self.widths[::-1]
            ]

    def condition(self, candidate: Candidate) -> Condition:
        """Convolves h: all of r(y, h) that does not depend on y.

        Raises:
          UserError: If the segmenter does not give the attribute's `features`.
        """
        contributions = {}
        for name in self.features:
            if name not in candidate.features:
                given = ", ".join(candidate.features)
                raise UserError(f"no feature {name!r}; the segmenter gives: {given}")
            h = candidate.features[name]
            if name == "input":
                h = _pad(h, self.feature_offset)
            contributions[name] = self.join[name](h)
        anchored = self.start_as_identity and self.anchored and self.reads_y
        log_y = log_clipped(candidate.y, _LOWEST_PROBABILITY) if anchored else None
        return Condition(contributions, log_y)

    def compute_logits(
        self, y: Float[Array, "b h w k"], condition: Condition
    ) -> Float[Array, "b h w k"]:
        """Computes the logits of r(y, h), Eq. 4; see `Refiner.compute_logits`."""
        if not self.reads_y:
            y = jnp.full_like(y, 1 / self.num_classes)
        height, width = y.shape[1:3]
        offset = self.feature_offset
        last = len(self.widths) - 1
        full, pooled, switches, sizes = self._pool(y, condition, last)
        if self.switch_noise:
            for level in range(last + 1):
                noise = self.switch_noise * _draw_noise(y, level)
                switches[level] = self._pool(y + noise, condition, level)[2][level]
        _, unpool = _POOLING[self.switches]
        x = pooled[last]
        for i, convolution in enumerate(self.up):
            level = last - i
            if self.decoder == "unpool":
                x = unpool(x, switches[level], sizes[level], fill=self.unpool_fill)
            else:
                x = pad_to(self.expand[i](x).astype(self.dtype), sizes[level])
            if not level and self.full_size_skip:
                x = x + full
            x = convolution(x).astype(self.dtype)
            if level and self.skip_connections:
                x = x + pooled[level - 1]
            if level and self.relu_decoder:
                x = nn.relu(x)
        logits = x[:, offset : offset + height, offset : offset + width]
        logits = logits.astype(jnp.float32)
        if self.start_as_identity:
            first, own = condition.log_y, log_clipped(y, _LOWEST_PROBABILITY)
            logits = logits + (own if first is None else first)
        return logits

    def _pool(
        self, y: Float[Array, "b h w k"], condition: Condition, last: int
    ) -> tuple[Array, list[Array], list[Array], list[Size]]:
        """Goes down to level `last`.

        Returns:
          The input of the first pooling; for each level the output of pooling, its
          switches, and the size before it.
        """
        pool, _ = _POOLING[self.switches]
        x = _pad(y.astype(self.dtype), self.feature_offset)
        pooled, switches, sizes = [], [], []
        for level, convolution in enumerate(self.down[: last + 1]):
            x = convolution(x).astype(self.dtype)
            for name, contribution in condition.contributions.items():
                if _FEATURE_LEVELS[name] == level:
                    x = x + contribution
            sizes.append(x.shape[1:3])
            x = nn.relu(x)
            if level == 0:
                full = x
            x, switch = pool(x)
            pooled.append(x)
            switches.append(switch)
        return full, pooled, switches, sizes


def _draw_noise(y: Float[Array, "b h w k"], level: int) -> Float[Array, "b h w k"]:
    """Draws standard Gaussian noise that depends on the level and the image's y."""

    def draw(image):
        energy = jnp.sum(jnp.square(image.astype(jnp.float32)))
        seed = jax.lax.bitcast_convert_type(energy, jnp.uint32)
        key = jax.random.fold_in(jax.random.key(level), seed)
        return jax.random.normal(key, image.shape, image.dtype)

    return jax.lax.stop_gradient(jax.vmap(draw)(y))


def _pad(x: Array, offset: int) -> Array:
    return jnp.pad(x, ((0, 0), (offset, offset), (offset, offset), (0, 0)))
