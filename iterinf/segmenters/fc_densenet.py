"""FC-DenseNet (Jégou et al. 2017): dense blocks on the way down and on the way up."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iterinf.errors import UserError
from iterinf.ops.convolutions import cast_all_but_bias, convolve
from iterinf.ops.switches import max_pool_with_switches
from iterinf.ops.upsampling import convolve_transposed

_EPSILON = 1e-4
_AXES = {"image": (1, 2), "running": (1, 2), "batch": (0, 1, 2)}  # of b h w c

Features = dict[str, Float[Array, "b _ _ _"]]
Map = Float[Array, "b h w _"]


def _convolve(x: Map, channels: int, size: int, dtype: DTypeLike, name: str) -> Map:
    convolution = nn.Conv(
        channels,
        (size, size),
        kernel_init=nn.initializers.he_uniform(),
        dtype=dtype,
        promote_dtype=cast_all_but_bias,
        conv_general_dilated=convolve,
        name=name,
    )
    return convolution(x).astype(dtype)


class _Upsampling(nn.Module):
    """3x3 transposed convolution of stride 2 that keeps the channels; 2 h + 1 rows."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
        channels = x.shape[-1]
        shape = (3, 3, channels, channels)
        kernel = self.param("kernel", nn.initializers.he_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        kernel = jnp.pad(kernel.astype(self.dtype), ((0, 1), (0, 1), (0, 0), (0, 0)))
        x = convolve_transposed(x, kernel, 2)[:, :-1, :-1]
        return (x + bias[None, None, None]).astype(self.dtype)  # added in float32


@functools.partial(jax.checkpoint, prevent_cse=False)
def _scale_and_shift(
    x: Map, scale: Float[Array, " _"], bias: Float[Array, " _"]
) -> Map:
    """Computes x * scale + bias in float32, hence also the gradients' sums over pixels.

    `jax.checkpoint` keeps x for the backward pass, and not a copy of it in float32.
    """
    return (x * scale[None, None, None] + bias[None, None, None]).astype(x.dtype)


class _Layer(nn.Module):
    """Scale and shift, ReLU, convolution, dropout, on maps already normalised.

    The statistics of a map are its own, whichever layer reads it: it is normalised
    once, and a layer of the network's many only scales and shifts.
    """

    channels: int
    size: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: list[Map], train: bool) -> Map:
        x = jnp.concatenate(maps, axis=-1)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = nn.relu(_scale_and_shift(x, scale, bias))
        x = _convolve(x, self.channels, self.size, self.dtype, "conv")
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class FCDenseNet(nn.Module):
    """Fully convolutional DenseNet; 103 layers and 9,322,091 parameters by default.

    Down: a 3x3 convolution, then a dense block and a transition down (1x1 convolution,
    2x2 max pooling) a level. A dense block of n layers appends growth_rate maps n
    times; each layer is batch normalisation, ReLU, 3x3 convolution and dropout, and
    reads all maps before it. Up: the maps that the block below has added, upsampled by
    a 3x3 transposed convolution of stride 2, are joined with the block of the same
    size on the way down. A 1x1 convolution scores the classes.

    Attributes:
      num_classes: K.
      blocks: layers of the dense blocks on the way down (mirrored on the way up).
      bottleneck: layers of the block in the middle.
      growth_rate: maps that a layer adds.
      first_channels: of the first convolution.
      dropout: rate after every convolution but the first and the last, in training.
      statistics: what normalises at test; in training it is always the batch.
        "image": each image's own, so that one image alone gives the same answer as
        in any batch; "batch": the batch's, as published; "running": those in the
        collection "statistics", where training batches leave theirs if it is mutable;
        while the variables have none, the image's.
      rematerialise: computes the layers' activations again in the backward pass
        instead of keeping them.
      dtype: of the computation; parameters, statistics and logits are float32.

    Source: Jégou et al. 2017, "The One Hundred Layers Tiramisu".
    """

    num_classes: int
    blocks: tuple[int, ...] = (4, 5, 7, 10, 12)
    bottleneck: int = 15
    growth_rate: int = 16
    first_channels: int = 48
    dropout: float = 0.2
    statistics: str = "image"
    rematerialise: bool = False
    dtype: DTypeLike = jnp.float32

    feature_offset = 0  # feature grids begin where the image does

    def __post_init__(self):
        if self.statistics not in _AXES:
            raise UserError(
                f"statistics {self.statistics!r} is unknown; known: {', '.join(_AXES)}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], Features]:
        """Scores every pixel.

        Args:
          images: RGB in [0, 1].
          train: whether dropout is on (needs the rng "dropout") and the batch's
            statistics normalise.

        Returns:
          logits [b h w k], and the features input, pool1..pool5 by name: pool l is
          what the l-th transition down gives, of size floor(h / 2^l).
        """
        features: Features = {"input": images}
        add = functools.partial(self._add_layers, train=train)
        normalise = functools.partial(self._normalise, train=train)
        x = images.astype(self.dtype)
        x = _convolve(x, self.first_channels, 3, self.dtype, "first")
        raw, normal = [x], [normalise(x, "first")]
        skips = []
        for level, num_layers in enumerate(self.blocks, start=1):
            add(raw, normal, num_layers, f"down{level}")
            skips.append((raw, normal))
            channels = sum(part.shape[-1] for part in raw)
            x = self._create_layer(channels, 1, f"transition{level}")(normal, train)
            x, _ = max_pool_with_switches(x)
            features[f"pool{level}"] = x
            raw, normal = [x], [normalise(x, f"pool{level}")]
        new = add(raw, normal, self.bottleneck, "bottleneck")
        for level in range(len(self.blocks), 0, -1):
            raw, normal = skips[level - 1]
            x = _Upsampling(self.dtype, name=f"upsampling{level}")(
                jnp.concatenate(new, axis=-1)
            )
            x = x[:, : raw[0].shape[1], : raw[0].shape[2]]
            raw, normal = [x, *raw], [normalise(x, f"up{level}"), *normal]
            new = add(raw, normal, self.blocks[level - 1], f"up{level}")
        x = jnp.concatenate(raw, axis=-1)
        logits = _convolve(x, self.num_classes, 1, self.dtype, "score")
        return logits.astype(jnp.float32), features

    def _create_layer(self, channels: int, size: int, name: str) -> nn.Module:
        layer = nn.remat(_Layer, static_argnums=2) if self.rematerialise else _Layer
        return layer(channels, size, self.dropout, self.dtype, name=name)

    def _add_layers(
        self,
        raw: list[Map],
        normal: list[Map],
        num_layers: int,
        name: str,
        *,
        train: bool,
    ) -> list[Map]:
        """Appends a dense block's maps to both lists; returns the new ones."""
        for i in range(1, num_layers + 1):
            layer = self._create_layer(self.growth_rate, 3, f"{name}_layer{i}")
            raw.append(layer(normal, train))
            normal.append(self._normalise(raw[-1], f"{name}_layer{i}", train=train))
        return raw[-num_layers:]

    def _normalise(self, x: Map, name: str, *, train: bool) -> Map:
        """(x - mean) / sqrt(var + 1e-4), by channel."""
        wide = x.astype(jnp.float32)
        if (
            not train
            and self.statistics == "running"
            and self.has_variable("statistics", name)
        ):
            found = self.get_variable("statistics", name)
            mean, var = found["mean"], found["var"]
        else:
            axes = _AXES["batch" if train else self.statistics]
            mean = jnp.mean(wide, axes, keepdims=True)
            var = jnp.var(wide, axes, keepdims=True)
        if train and self.is_mutable_collection("statistics"):
            self.put_variable("statistics", name, {"mean": mean, "var": var})
        return ((wide - mean) * jax.lax.rsqrt(var + _EPSILON)).astype(self.dtype)
