"""Prediction on images of any size with a finished workdir."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from iterinf.data.external import STRIDES, check_outputs
from iterinf.errors import UserError
from iterinf.prediction.pipeline import Pipeline
from iterinf.prediction.resize import (
    Size,
    find_labels,
    interpolate,
    resize_channels,
    resize_image,
)
from iterinf.runtime.devices import replicate_outputs, shard, use_all_devices
from iterinf.training.objectives import Networks, to_unit_range
from iterinf.types import Batch

_MULTIPLE = 16  # heights and widths are multiples, to compile few programs
_LEAST = 32  # smallest side that survives five poolings


class PreparedImage(NamedTuple):
    """An image prepared for the networks by `Predictor.prepare`."""

    image: UInt8[np.ndarray, "h w 3"]  # original size
    resized: UInt8[np.ndarray, "_ _ 3"]  # at the networks' scale
    outputs: dict[str, Float[np.ndarray, "_ _ _"]]  # precomputed, at that scale
    name: str


class Prediction(NamedTuple):
    """The prediction for an image."""

    prepared: PreparedImage
    labels: UInt8[np.ndarray, "h w"]  # classes 0..k-1, at the original size
    initial_labels: UInt8[np.ndarray, "h w"]  # the same before refinement
    y: Float[np.ndarray, "_ _ k"]  # probabilities, at the networks' scale
    initial_y: Float[np.ndarray, "_ _ k"]
    # Labels at the networks' scale, initially and after each iteration; None unless
    # requested.
    trajectory: UInt8[np.ndarray, "t _ _"] | None

    def compute_probabilities(self) -> Float[np.ndarray, "h w k"]:
        """Computes the refined probabilities at the original size."""
        return interpolate(self.y, self.labels.shape)


class Predictor:
    """Segments and refines images with the choices made on validation.

    Attributes:
      classes: The k class names.
      colors: The RGB colours of the k classes and void.
      outputs: The number of channels, by name, of the precomputed outputs required with
        every image; empty unless the segmenter is precomputed.
      choose_size: The function from an image's height and width to those at the
        networks' scale.
    """

    def __init__(self, pipeline: Pipeline, scale: float | None = None):
        """Creates a predictor; programs are compiled on first use.

        Args:
          pipeline: The result of `iterinf.prediction.pipeline.read_pipeline`.
          scale: The factor by which images are resized for the networks; None resizes
            them to the area of the training images.

        Raises:
          UserError: If the scale is not positive.
        """
        if scale is not None and not scale > 0:
            raise UserError(f"scale is {scale}, expected a number > 0")
        self.classes = pipeline.class_info.classes
        self.colors = pipeline.class_info.colors
        self.outputs = pipeline.class_info.outputs
        self.choose_size = functools.partial(
            choose_size, training=pipeline.class_info.size, scale=scale
        )
        self._networks = pipeline.networks
        self._refine = jax.jit(
            functools.partial(_refine, pipeline), static_argnames="trajectory"
        )

    def predict(
        self,
        image: Num[np.ndarray, "h w *channels"],
        *,
        trajectory: bool = False,
        **outputs: Float[np.ndarray, "_ _ _"],
    ) -> Prediction:
        """Predicts one image.

        Args:
          image: The image, see `prepare`.
          trajectory: Whether to return the label map after every iteration.
          **outputs: Precomputed outputs, e.g. `probabilities`, see `prepare`.

        Raises:
          UserError: If the arguments are invalid or the probabilities are not finite.
        """
        images = [self.prepare(image, outputs)]
        prediction = next(self.predict_all(images, trajectory=trajectory))
        check_finite(prediction)
        return prediction

    def predict_all(
        self,
        images: Iterable[PreparedImage],
        *,
        batch_size: int = 1,
        trajectory: bool = False,
    ) -> Iterator[Prediction]:
        """Predicts a stream of images, holding at most one batch in memory.

        A program is compiled per size at the networks' scale. Consecutive images of
        one size form a batch.

        Args:
          images: The prepared images, e.g. `map(predictor.prepare, images)`.
          batch_size: The maximum batch size.
          trajectory: Whether to return the label maps after every iteration.

        Yields:
          The prediction of each image, in order; check it with `check_finite`.
        """
        filled: dict[Size, int] = {}  # largest batch so far; smaller ones are padded
        for size, group in itertools.groupby(images, lambda p: p.resized.shape[:2]):
            while batch := list(itertools.islice(group, batch_size)):
                filled[size] = max(len(batch), filled.get(size, 0))
                yield from self._predict_batch(batch, filled[size], trajectory)

    def prepare(
        self,
        image: Num[np.ndarray, "h w *channels"],
        outputs: Mapping[str, Float[np.ndarray, "_ _ _"]] = MappingProxyType({}),
        name: str = "the image",
    ) -> PreparedImage:
        """Resizes an image to the networks' scale.

        Args:
          image: The RGB [h w 3] or grey [h w] image; uint8, or floats in [0, 1].
          outputs: The outputs of another network: class `probabilities` in float16 or
            float32, at the size of the image or of the networks, which replace the
            segmenter's. Required, with the features of training, if the workdir's
            segmenter is precomputed.
          name: The name of the image in error messages.

        Raises:
          UserError: If the image or an output is invalid.
        """
        image = _to_rgb(image, name)
        own = (image.shape[0], image.shape[1])
        size = self.choose_size(own)
        at_scale = {}
        if outputs or self.outputs:
            for key, array in self._pick_outputs(outputs, (own, size), name).items():
                cells = (size[0] // STRIDES[key], size[1] // STRIDES[key])
                at_scale[key] = resize_channels(array, cells)
        return PreparedImage(image, resize_image(image, size), at_scale, name)

    def _pick_outputs(
        self, outputs: Mapping[str, np.ndarray], sizes: tuple[Size, Size], name: str
    ) -> dict[str, np.ndarray]:
        """Selects and checks the outputs that the networks read."""
        channels = self.outputs or {"probabilities": len(self.classes)}
        for key, number in channels.items():
            found = outputs[key].shape[-1] if key in outputs else 0
            if found != number:
                raise UserError(
                    f"{key} of {name} has {found} channels, expected {number}"
                )
        picked = {key: outputs[key] for key in channels}
        size = picked["probabilities"].shape[:2]
        if size not in sizes:
            listed = " or ".join(f"{height}x{width}" for height, width in sizes)
            raise UserError(
                f"probabilities of {name} are {size[0]}x{size[1]}, expected {listed}"
            )
        check_outputs(name, picked, size, len(self.classes))
        return picked

    def _predict_batch(
        self, images: list[PreparedImage], batch_size: int, trajectory: bool
    ) -> Iterator[Prediction]:
        """Predicts images of one size, repeating some to fill the batch."""
        filled = itertools.islice(itertools.cycle(images), batch_size)
        parts: list[Any] = [(image.resized, image.outputs) for image in filled]
        with use_all_devices():
            arrays = shard(jax.tree.map(lambda *a: np.stack(a), *parts))
            result = self._refine(self._networks, *arrays, trajectory=trajectory)
            initial_y, y, labels = jax.device_get(result)
        for i, prepared in enumerate(images):
            size = (prepared.image.shape[0], prepared.image.shape[1])
            yield Prediction(
                prepared,
                find_labels(y[i], size),
                find_labels(initial_y[i], size),
                y[i],
                initial_y[i],
                labels[:, i] if trajectory else None,
            )


def check_finite(prediction: Prediction) -> None:
    """Raises UserError if the probabilities are not finite."""
    if not np.isfinite(prediction.y).all():
        raise UserError(
            f"{prediction.prepared.name} has non-finite probabilities at "
            f"{prediction.y.shape[0]}x{prediction.y.shape[1]}; try another scale"
        )


def choose_size(own: Size, training: Size, scale: float | None = None) -> Size:
    """Chooses the size at which the networks process an image.

    Args:
      own: The height and width of the image.
      training: The height and width of the training images.
      scale: The factor for both sides; None to match the area of the training images.

    Returns:
      A height and width of at least 32. Without a scale they are multiples of 16, or
      the training size if that is as near.
    """
    if scale is not None:
        return max(_LEAST, round(own[0] * scale)), max(_LEAST, round(own[1] * scale))
    scale = math.sqrt(math.prod(training) / math.prod(own))
    pairs = zip(own, training, strict=True)
    if all(abs(o * scale - t) <= _MULTIPLE / 2 for o, t in pairs):
        return training
    height, width = (
        max(_LEAST, _MULTIPLE * round(length * scale / _MULTIPLE)) for length in own
    )
    return height, width


def _refine(
    pipeline: Pipeline,
    networks: Networks,
    images: UInt8[Array, "b h w 3"],
    outputs: dict[str, Float[Array, "b _ _ _"]],
    *,
    trajectory: bool,
) -> tuple[
    Float[Array, "b h w k"], Float[Array, "b h w k"], UInt8[Array, "t b h w"] | None
]:
    """Returns probabilities before and after the loop, and label maps throughout."""
    known = {name: outputs[name] for name in pipeline.class_info.outputs}
    batch = Batch(images, jnp.zeros(images.shape[:3], jnp.uint8), known)
    candidate = pipeline.propose(networks, to_unit_range(batch))
    if outputs and not known:
        y = outputs["probabilities"]
        candidate = candidate._replace(y=y / y.sum(axis=-1, keepdims=True))

    def observe(y):
        return jnp.argmax(y, axis=-1).astype(jnp.uint8) if trajectory else None

    y, labels = pipeline.refine(networks, candidate, observe=observe)
    if trajectory:
        labels = jnp.concatenate([observe(candidate.y)[None], labels])
    return replicate_outputs((candidate.y, y, labels))


def _to_rgb(
    image: Num[np.ndarray, "h w *channels"], name: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image to RGB uint8, or raises UserError."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise UserError(
            f"{name} has shape {image.shape}, expected (height, width) or (height, "
            "width, 3)"
        )
    if image.dtype == np.uint8:
        return image
    in_range = image.min() >= 0 and image.max() <= 1
    if not (in_range and np.issubdtype(image.dtype, np.floating)):
        raise UserError(
            f"{name} has {image.dtype} values from {image.min():g} to {image.max():g}, "
            "expected uint8, or floats in [0, 1]"
        )
    return np.round(255 * image).astype(np.uint8)
