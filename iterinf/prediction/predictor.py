"""A finished workdir's networks on pictures of any size."""

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
from iterinf.runtime.devices import divide, gather, use_all_devices
from iterinf.training.objectives import Networks, to_unit_range
from iterinf.types import Batch

_MULTIPLE = 16  # of heights and widths: few sizes, hence few programs to compile
_LEAST = 32  # what five poolings leave a pixel of


class Picture(NamedTuple):
    """A picture, made ready for the networks by `Predictor.prepare`."""

    image: UInt8[np.ndarray, "h w 3"]  # as it is
    resized: UInt8[np.ndarray, "_ _ 3"]  # at the networks' scale
    outputs: dict[str, Float[np.ndarray, "_ _ _"]]  # of another network, at that scale
    name: str


class Prediction(NamedTuple):
    """What the networks say of a picture."""

    picture: Picture
    labels: UInt8[np.ndarray, "h w"]  # classes 0..k-1, at the picture's own size
    initial_labels: UInt8[np.ndarray, "h w"]  # the same before refinement
    y: Float[np.ndarray, "_ _ k"]  # probabilities, at the networks' scale
    initial_y: Float[np.ndarray, "_ _ k"]
    trajectory: UInt8[np.ndarray, "t _ _"] | None  # labels at the networks' scale: the
    # initial ones and those after each iteration; None unless asked for

    def compute_probabilities(self) -> Float[np.ndarray, "h w k"]:
        """The refined probabilities at the picture's own size."""
        return interpolate(self.y, self.labels.shape)


class Predictor:
    """Segments and refines pictures as validation chose.

    Attributes:
      classes: k names.
      colors: RGB a class, k + 1 of them; the last is void.
      outputs: channels by name of what must come with every picture where the segmenter
        is a network that ran elsewhere; else none.
    """

    def __init__(self, pipeline: Pipeline, scale: float | None = None):
        """Compiles nothing yet.

        Args:
          pipeline: from `iterinf.prediction.pipeline.read_pipeline`.
          scale: pixels of the networks for one of a picture; None: as many as the
            training images have, whatever the picture's size.
        """
        self.classes = pipeline.legend.classes
        self.colors = pipeline.legend.colors
        self.outputs = pipeline.legend.outputs
        self._training_size = pipeline.legend.size
        self._networks = pipeline.networks
        self._scale = scale
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
        """Predicts one picture.

        Args:
          image: see `prepare`.
          trajectory: whether to keep the label map after every iteration.
          **outputs: of another network, e.g. `probabilities`; see `prepare`.

        Raises:
          UserError: as `prepare` and `check_finite` do.
        """
        pictures = [self.prepare(image, outputs)]
        prediction = next(self.predict_all(pictures, trajectory=trajectory))
        check_finite(prediction)
        return prediction

    def predict_all(
        self,
        pictures: Iterable[Picture],
        *,
        batch_size: int = 1,
        trajectory: bool = False,
    ) -> Iterator[Prediction]:
        """Predicts pictures as they come; holds no more than a batch.

        A program is compiled for every size at the networks' scale. Pictures that
        follow each other in one size make up a batch.

        Args:
          pictures: e.g. `map(predictor.prepare, images)`.
          batch_size: the most at a time.
          trajectory: whether to keep the label maps after every iteration.

        Yields:
          A prediction a picture, in their order; what `check_finite` refuses is none.
        """
        filled: dict[Size, int] = {}  # largest batch so far: smaller ones are filled up
        for size, group in itertools.groupby(pictures, lambda p: p.resized.shape[:2]):
            while batch := list(itertools.islice(group, batch_size)):
                filled[size] = max(len(batch), filled.get(size, 0))
                yield from self._predict_batch(batch, filled[size], trajectory)

    def choose_size(self, own: Size) -> Size:
        """The size at which the networks see a picture of this height and width."""
        return choose_size(own, self._training_size, self._scale)

    def prepare(
        self,
        image: Num[np.ndarray, "h w *channels"],
        outputs: Mapping[str, Float[np.ndarray, "_ _ _"]] = MappingProxyType({}),
        name: str = "the image",
    ) -> Picture:
        """Brings a picture to the networks' scale.

        Args:
          image: RGB [h w 3] or gray [h w]; uint8, or floats in [0, 1].
          outputs: of another network: the `probabilities` of the classes, float16 or
            float32 and of the size of the picture or of the networks; they are refined
            in place of the segmenter's. Where the workdir's own segmenter is a network
            that ran elsewhere, they must be there, with the features that it had.
          name: what errors call it.

        Raises:
          UserError: if they are something else.
        """
        image = _to_rgb(image, name)
        own = (image.shape[0], image.shape[1])
        size = self.choose_size(own)
        if outputs or self.outputs:
            outputs = self._pick_outputs(outputs, (own, size), name)
        at_scale = {
            key: resize_channels(array, _divide(size, STRIDES[key]))
            for key, array in outputs.items()
        }
        return Picture(image, resize_image(image, size), at_scale, name)

    def _pick_outputs(
        self, outputs: Mapping[str, np.ndarray], sizes: tuple[Size, Size], name: str
    ) -> dict[str, np.ndarray]:
        """What the networks read; raises UserError if it is not there or wrong."""
        channels = self.outputs or {"probabilities": len(self.classes)}
        for key, number in channels.items():
            found = outputs[key].shape[-1] if key in outputs else "no"
            if found != number:
                raise UserError(
                    f"{name} has {key} of {found} channels, expected {number}"
                )
        picked = {key: outputs[key] for key in channels}
        size = picked["probabilities"].shape[:2]
        if size not in sizes:
            listed = " or ".join(f"{height}x{width}" for height, width in sizes)
            raise UserError(
                f"{name} has probabilities of {size[0]}x{size[1]}, expected {listed}"
            )
        check_outputs(name, picked, size, len(self.classes))
        return picked

    def _predict_batch(
        self, pictures: list[Picture], batch_size: int, trajectory: bool
    ) -> Iterator[Prediction]:
        """Predicts pictures of one size, of which some more fill the batch."""
        parts: list[Any] = [
            (pictures[i % len(pictures)].resized, pictures[i % len(pictures)].outputs)
            for i in range(batch_size)
        ]
        with use_all_devices():
            arrays = divide(jax.tree.map(lambda *a: np.stack(a), *parts))
            result = self._refine(self._networks, *arrays, trajectory=trajectory)
            initial_y, y, labels = jax.device_get(result)
        for i, picture in enumerate(pictures):
            size = (picture.image.shape[0], picture.image.shape[1])
            yield Prediction(
                picture,
                find_labels(y[i], size),
                find_labels(initial_y[i], size),
                y[i],
                initial_y[i],
                labels[:, i] if trajectory else None,
            )


def check_finite(prediction: Prediction) -> None:
    """Raises UserError if y is not finite, whose labels mean nothing then."""
    if not np.isfinite(prediction.y).all():
        raise UserError(
            f"{prediction.picture.name} gets probabilities that are not finite at "
            f"{prediction.y.shape[0]}x{prediction.y.shape[1]}; try another scale"
        )


def choose_size(own: Size, training: Size, scale: float | None = None) -> Size:
    """The size at which networks see a picture.

    Args:
      own: height and width of the picture.
      training: of the images that the networks were trained on.
      scale: of both sides; None: so that the area is that of the training images.

    Returns:
      Height and width, at least 32. Where the scale is not given they are multiples of
      16, or those of the training images if no multiple is nearer.
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
    """Probabilities before and after the loop, and label maps all along."""
    known = {name: outputs[name] for name in pipeline.legend.outputs}
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
    return gather((candidate.y, y, labels))


def _divide(size: Size, stride: int) -> Size:
    return size[0] // stride, size[1] // stride


def _to_rgb(
    image: Num[np.ndarray, "h w *channels"], name: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Raises UserError unless it is a picture."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise UserError(
            f"{name} is of shape {image.shape}, expected height x width, or height x "
            "width x 3"
        )
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"{name} is {image.dtype}, expected uint8, or floats in [0, 1]")
    if not (image.min() >= 0 and image.max() <= 1):
        raise UserError(f"{name} has values outside [0, 1], expected none, or uint8")
    return np.round(255 * image).astype(np.uint8)
