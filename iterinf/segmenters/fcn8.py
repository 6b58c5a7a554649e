"""FCN-8 (Long, Shelhamer & Darrell 2015), a fully convolutional VGG16."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iterinf.errors import check_known
from iterinf.ops.convolutions import cast_all_but_bias
from iterinf.ops.patches import convolve_patches
from iterinf.ops.switches import max_pool_with_switches
from iterinf.segmenters.upsampling import Upsampling
from iterinf.types import Size

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions

Features = dict[str, Float[Array, "b _ _ _"]]


def _init_bilinear(key, shape, dtype=jnp.float32):
    """Initialises a transposed convolution as bilinear interpolation per class."""
    del key
    size, _, classes, _ = shape
    ramp = 1 - jnp.abs(jnp.arange(size) - (size - 1) / 2) / (size / 2)
    kernel = ramp[:, None] * ramp[None, :]
    return (kernel[:, :, None, None] * jnp.eye(classes)[None, None]).astype(dtype)


_UPSAMPLING_INITS = {
    "bilinear": _init_bilinear,
    "glorot": nn.initializers.glorot_uniform(),
}


def _crop(x: Array, offset: int, shape: Size) -> Array:
    """Crops x to `shape` from `offset`; repeats the border where x is too small."""
    missing = [
        jax.core.max_dim(0, offset + n - have)
        for n, have in zip(shape, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    return x[:, offset : offset + shape[0], offset : offset + shape[1]]


class FCN8(nn.Module):
    """Fully convolutional VGG16 that adds the scores of strides 32, 16 and 8.

    With padding "published" the first convolution pads by 100 pixels, so that fc6
    accepts images of any size, and feature grids begin 99 pixels before the image.
    With "same" every convolution keeps the size: 2.2 times less work at 224x224.
    134,348,962 parameters for 11 classes at width 1.

    Attributes:
      num_classes: The number of classes.
      width: The factor on all numbers of channels.
      padding: "published" or "same".
      relu_scores: Whether to apply ReLU to the three score convolutions (as released in
        2017).
      upsampling_init: The initialisation of the transposed convolutions: "bilinear" or
        "glorot" (as released in 2017).
      dropout: The dropout rate after fc6 and fc7 in training.
      input_mean: The mean subtracted from the image, RGB in [0, 1].
      input_std: The standard deviation by which the image is then divided.
      dtype: The dtype of the computation; parameters and logits are float32.

    Source: Long et al. 2015; the transposed convolutions have biases.
    """

    num_classes: int
    width: float = 1.0
    padding: str = "published"
    relu_scores: bool = False
    upsampling_init: str = "bilinear"
    dropout: float = 0.5
    input_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    input_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_known("padding", self.padding, ("published", "same"))
        check_known("upsampling_init", self.upsampling_init, _UPSAMPLING_INITS)
        super().__post_init__()

    @property
    def feature_offset(self) -> int:
        """The number of pixels by which the feature grids begin before the image."""
        return 99 if self.padding == "published" else 0

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], Features]:
        """Computes class scores and features from RGB in [0, 1].

        In training, dropout needs the rng "dropout". The features are input and
        pool1..pool5; pool l has size floor((h + 2 feature_offset) / 2^l).
        """
        published = self.padding == "published"
        features: Features = {"input": images}
        mean = jnp.asarray(self.input_mean, jnp.float32)
        std = jnp.asarray(self.input_std, jnp.float32)
        x = (images - mean[None, None, None]) / std[None, None, None]
        x = x.astype(self.dtype)
        for block, (channels, num_convolutions) in enumerate(_BLOCKS, start=1):
            for i in range(1, num_convolutions + 1):
                pad = 100 if published and (block, i) == (1, 1) else "SAME"
                x = self._convolve(x, channels, 3, pad, f"conv{block}_{i}")
            x, _ = max_pool_with_switches(x)
            features[f"pool{block}"] = x
        pad = 0 if published else 3
        by_patches = {"conv_general_dilated": convolve_patches}
        x = self._convolve(x, 4096, 7, pad, "fc6", **by_patches)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = self._convolve(x, 4096, 1, "VALID", "fc7")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self._fuse_scores(x, features, images.shape[1:3]), features

    def _convolve(self, x, channels, size, padding, name, **options):
        convolution = nn.Conv(
            int(channels * self.width),
            (size, size),
            padding=padding,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            promote_dtype=cast_all_but_bias,
            name=name,
            **options,
        )
        return nn.relu(convolution(x).astype(self.dtype))

    def _fuse_scores(self, x, features, shape):
        """Upsamples by 2, 2 and 8, and adds the scores of pool4 and pool3 in between.

        The crops follow from the positions of cells in the image: cell i of pool l is
        centred on pixel 2^l (i + 1/2) - 1/2 - feature_offset, and output j of a
        transposed convolution of stride s and size 2s on input (j - s + 1/2) / s.
        """
        offsets = (5, 9, 31) if self.padding == "published" else (1, 1, 4)

        def score(x, name):
            convolution = nn.Conv(
                self.num_classes,
                (1, 1),
                dtype=self.dtype,
                promote_dtype=cast_all_but_bias,
                name=name,
            )
            scores = convolution(x).astype(self.dtype)
            return nn.relu(scores) if self.relu_scores else scores

        def upsample(x, stride, name):
            init = _UPSAMPLING_INITS[self.upsampling_init]
            return Upsampling(2 * stride, stride, init, self.dtype, name=name)(x)

        x = upsample(score(x, "score_fr"), 2, "score2")
        for offset, pool, stride, name in (
            (offsets[0], "pool4", 2, "score4"),
            (offsets[1], "pool3", 8, "upsample"),
        ):
            skip = score(features[pool], f"score_{pool}")
            if self.padding == "published":
                skip = _crop(skip, offset, x.shape[1:3])
            else:
                x = _crop(x, offset, skip.shape[1:3])
            x = upsample(x + skip, stride, name)
        return _crop(x, offsets[2], shape).astype(jnp.float32)
