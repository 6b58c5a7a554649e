"""FC-DenseNet (Jégou et al. 2017): dense blocks on the way down and on the way up."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iterinf.errors import check_known
from iterinf.ops.convolutions import cast_all_but_bias, convolve
from iterinf.ops.switches import max_pool_with_switches
from iterinf.segmenters.upsampling import Upsampling

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


@functools.partial(jax.checkpoint, prevent_cse=False)
def _scale_and_shift(
    x: Map, scale: Float[Array, " _"], bias: Float[Array, " _"]
) -> Map:
    """Computes x * scale + bias in float32, and thus sums gradients in float32.

    `jax.checkpoint` stores x for the backward pass instead of its float32 copy.
    """
    return (x * scale[None, None, None] + bias[None, None, None]).astype(x.dtype)


class _Layer(nn.Module):
    """Scale and shift, ReLU, convolution and dropout of normalised maps.

    The statistics of a map do not depend on the layer that reads it, so each map is
    normalised once and every layer only scales and shifts it.
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
    2x2 max pooling) per level. A dense block of n layers appends growth_rate maps n
    times; each layer is batch normalisation, ReLU, 3x3 convolution and dropout, and
    reads all previous maps. Up: the new maps of the block below, upsampled by a 3x3
    transposed convolution of stride 2, are concatenated with the block of the same size
    on the way down. A 1x1 convolution computes the class scores.

    Attributes:
      num_classes: The number of classes.
      blocks: The layers of the dense blocks on the way down (mirrored on the way up).
      bottleneck: The layers of the middle block.
      growth_rate: The number of maps that a layer adds.
      first_channels: The channels of the first convolution.
      dropout: The dropout rate in training after all but the first and last
        convolution.
      statistics: The normalisation at test (training uses the batch). "image": per
        image, so that the result does not depend on the rest of the batch; "batch": of
        the batch, as published; "running": the collection "statistics", which training
        batches update if it is mutable, or "image" if it is absent.
      rematerialise: Whether to recompute activations in the backward pass.
      dtype: The dtype of the computation; parameters, statistics and logits are
        float32.

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
        check_known("statistics", self.statistics, _AXES)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], Features]:
        """Computes class scores and features from RGB in [0, 1].

        In training, dropout needs the rng "dropout". The features are input and
        pool1..pool5; pool l is the l-th transition down, of size floor(h / 2^l).
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
            init = nn.initializers.he_uniform()
            upsample = Upsampling(3, 2, init, self.dtype, name=f"upsampling{level}")
            x = upsample(jnp.concatenate(new, axis=-1))
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
        """Appends the maps of a dense block to both lists; returns the new maps."""
        for i in range(1, num_layers + 1):
            layer = self._create_layer(self.growth_rate, 3, f"{name}_layer{i}")
            raw.append(layer(normal, train))
            normal.append(self._normalise(raw[-1], f"{name}_layer{i}", train=train))
        return raw[-num_layers:]

    def _normalise(self, x: Map, name: str, *, train: bool) -> Map:
        """Computes (x - mean) / sqrt(var + 1e-4) per channel."""
        wide = x.astype(jnp.float32)
        is_running = self.statistics == "running" and not train
        if is_running and self.has_variable("statistics", name):
            found = self.get_variable("statistics", name)
            mean, var = found["mean"], found["var"]
        else:
            axes = _AXES["batch" if train else self.statistics]
            mean = jnp.mean(wide, axes, keepdims=True)
            var = jnp.var(wide, axes, keepdims=True)
        if train and self.is_mutable_collection("statistics"):
            self.put_variable("statistics", name, {"mean": mean, "var": var})
        return ((wide - mean) * jax.lax.rsqrt(var + _EPSILON)).astype(self.dtype)
