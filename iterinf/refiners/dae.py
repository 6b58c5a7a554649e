"""The conditional denoising autoencoder r(y, h) of the paper."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterinf.errors import UserError
from iterinf.ops.convolutions import cast_all_but_bias
from iterinf.ops.switches import max_pool_with_switches, max_unpool
from iterinf.ops.ties import max_pool_with_ties, max_unpool_ties
from iterinf.refiners.dense_crf import compute_unary
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
    """Pools y with switches, joins h, unpools by the switches back to y's size.

    Down, level l = 1..L: 3x3 convolution to widths[l-1], ReLU, 2x2 max pooling with
    switches. Up, l = L..1: unpooling by the switches of level l, 3x3 convolution to
    widths[l-2] (classes at l = 1), ReLU but at the last. Softmax.
    A feature map of pool l is joined with the output of the l-th pooling ("input":
    with y): the convolution that follows reads both. As a convolution of
    a concatenation is a sum of two convolutions, h's half is computed in `condition`.
    55,019,787 parameters for 11 classes and h = pool4 of 512 channels.

    Attributes:
      widths: channels of the L levels.
      features: names of h's layers: input, pool1..pool5, below level L; may be empty.
      feature_offset: number of pixels by which the grid of h begins before the image;
        y is padded by that on all sides, and cropped back.
      reads_y: False replaces y by the uniform distribution, in training and at test:
        the control that says what h alone, without the prediction y, is worth. A
        constant y also leaves the switches nothing to carry, so that where h is coarse
        (pool4 alone, no skip connections) this is a lower bound of that.
      decoder: "unpool" (by switches) or "transposed" (2x2 transposed convolutions of
        stride 2 in place of unpooling: the ablation of section 4.3).
      unpool_fill: what share of a value unpooling also writes to the other three
        positions of its window, 0 to 1; 0 as published. Zeros there make speckled label
        maps (docs/method.md).
      relu_decoder: ReLU in the upsampling path; False as released in 2017.
      skip_connections: adds the output of pooling l - 1 to up-level l, before ReLU.
      full_size_skip: adds the output of the first convolution and ReLU, before pooling,
        to what the last convolution reads.
      start_as_identity: the last convolution starts at zero and adds to log y, so
        that training starts from r(y) = y.
      anchored: what it adds to is log y_0, of the first y, in all iterations, as a
        CRF's unary term is. Training is the same; without it every iteration adds the
        same correction once more, so that a long loop becomes sure of everything.
      switches: "first" (of equal maxima, the first is the switch) or "tied" (all are,
        as released in 2017).
      switch_noise: standard deviation of Gaussian noise on y in passes of their own,
        one a level, from which the switches are taken, in training and at test (as
        released in 2017: .5). Drawn anew for every y, by a key made of its values, so
        that r stays a pure function.
      feature_dropout: probability that an image's h, all its layers, is dropped in
        training.

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
    feature_dropout: float = 0.0

    def __post_init__(self):
        if self.decoder not in ("unpool", "transposed"):
            raise UserError(
                f"decoder {self.decoder!r} is unknown; known: 'unpool', 'transposed'"
            )
        if self.switches not in _POOLING:
            raise UserError(
                f"switches {self.switches!r} are unknown; known: 'first', 'tied'"
            )
        for name in self.features:
            if _FEATURE_LEVELS.get(name, len(self.widths)) >= len(self.widths):
                known = list(_FEATURE_LEVELS)[: len(self.widths)]
                raise UserError(
                    f"feature {name!r} cannot be joined by a DAE of "
                    f"{len(self.widths)} levels; known: {', '.join(known)}"
                )
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
        self.drop = nn.Dropout(self.feature_dropout)

    def condition(self, candidate: Candidate, *, train: bool = False) -> Condition:
        """Convolves h: all of r(y, h) that does not depend on y.

        Args:
          candidate: its `features` hold the layers named by the attribute.
          train: whether `feature_dropout` is on (needs the rng "dropout").

        Raises:
          UserError: if the segmenter gives no such features.
        """
        contributions = {}
        keep = self.drop(
            jnp.ones((candidate.y.shape[0], 1, 1, 1)), deterministic=not train
        )
        for name in self.features:
            if name not in candidate.features:
                given = ", ".join(candidate.features)
                raise UserError(f"no feature {name!r}; the segmenter gives: {given}")
            h = candidate.features[name]
            if name == "input":
                h = _pad(h, self.feature_offset)
            contributions[name] = self.join[name](keep * h if train else h)
        anchored = self.start_as_identity and self.anchored and self.reads_y
        return Condition(
            contributions,
            compute_unary(candidate.y, _LOWEST_PROBABILITY) if anchored else None,
        )

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
                x = _pad_to(self.expand[i](x).astype(self.dtype), sizes[level])
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
            anchor = condition.log_y
            own = compute_unary(y, _LOWEST_PROBABILITY)
            logits = logits + (own if anchor is None else anchor)
        return logits

    def _pool(
        self, y: Float[Array, "b h w k"], condition: Condition, last: int
    ) -> tuple[Array, list[Array], list[Array], list[Size]]:
        """Goes down to level `last`.

        Returns:
          What the first pooling reads; of all levels, what pooling gives, its switches,
          and the size before it.
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
    """Standard Gaussian noise, another one for every image, level and value of y."""

    def draw(image):
        energy = jnp.sum(jnp.square(image.astype(jnp.float32)))
        seed = jax.lax.bitcast_convert_type(energy, jnp.uint32)
        key = jax.random.fold_in(jax.random.key(level), seed)
        return jax.random.normal(key, image.shape, image.dtype)

    return jax.lax.stop_gradient(jax.vmap(draw)(y))


def _pad(x: Array, offset: int) -> Array:
    return jnp.pad(x, ((0, 0), (offset, offset), (offset, offset), (0, 0)))


def _pad_to(x: Array, shape: Size) -> Array:
    """Adds the zero row and column that pooling dropped from an odd size."""
    rows, columns = shape[0] - x.shape[1], shape[1] - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
