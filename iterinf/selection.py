"""Step size and number of iterations, chosen on the validation split."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from iterinf.inference import sweep
from iterinf.metrics import confusion_matrix
from iterinf.objectives import Variables, pad_split, propose, to_unit_range


class Counts(NamedTuple):
    """Confusion matrices [truth, prediction] of every image."""

    initial: Int[np.ndarray, "n k k"]  # of the segmenter's y
    refined: Int[np.ndarray, "n s t k k"]  # after t + 1 steps of every step size


class Selection(NamedTuple):
    """A choice made on validation."""

    step_size: float
    num_iterations: int
    mean_iou: float  # there, a fraction


def select(
    mean_iou: Float[np.ndarray, "s t"], step_sizes: Sequence[float]
) -> Selection:
    """Chooses the pair with the highest mean IoU; of equals, fewer iterations.

    Args:
      mean_iou: on validation, after t + 1 iterations; fractions.
      step_sizes: s of them.

    Returns:
      The choice; iteration 0, the segmenter itself, is never chosen.
    """
    iteration, s = divmod(int(np.argmax(mean_iou.T)), len(step_sizes))
    return Selection(step_sizes[s], iteration + 1, float(mean_iou[s, iteration]))


def count_refinements(
    segmenter: nn.Module,
    refiner: nn.Module,
    segmenter_variables: Variables,
    refiner_variables: Variables,
    images: UInt8[np.ndarray, "n h w 3"],
    labels: UInt8[np.ndarray, "n h w"],
    *,
    step_sizes: Sequence[float],
    num_iterations: int,
    num_classes: int,
    batch_size: int,
    title: str = "",
) -> Counts:
    """Refines every image with every step size; counts after every iteration.

    One compiled call: batches by `lax.map`, iterations by `lax.scan`, step sizes by
    `vmap`, confusion matrices on the device. h's share is computed once an image.

    Args:
      segmenter: proposes y and h.
      refiner: reconstructs.
      segmenter_variables: of the segmenter.
      refiner_variables: of the refiner.
      images: a whole split.
      labels: k and above are void.
      step_sizes: s of them.
      num_iterations: t.
      num_classes: k.
      batch_size: images at a time; memory grows with batch_size * s.
      title: of the progress bar; empty for none.

    Returns:
      Integer counts of every image.
    """
    num_images = len(images)
    images, labels = pad_split(images, labels, batch_size, void=num_classes)
    shape = (-1, batch_size)
    batches = (
        images.reshape(*shape, *images.shape[1:]),
        labels.reshape(*shape, *labels.shape[1:]),
    )
    with _open_bar(title, len(batches[0])):
        initial, refined = _count_batches(
            segmenter,
            refiner,
            num_iterations,
            num_classes,
            bool(title),
            {"segmenter": segmenter_variables, "refiner": refiner_variables},
            batches,
            jnp.asarray(step_sizes, jnp.float32),
        )
        initial, refined = jax.device_get((initial, refined))
    k = num_classes
    return Counts(
        initial.reshape(-1, k, k)[:num_images],
        refined.reshape(-1, len(step_sizes), num_iterations, k, k)[:num_images],
    )


_open_bars: list[tqdm] = []


@contextlib.contextmanager
def _open_bar(title: str, total: int) -> Iterator[None]:
    """Shows a bar, unless untitled, that `_advance_bar` moves.

    The compiled sweep calls that one function, whatever bar is open: a bar of its own
    would be a new program for every sweep.
    """
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        desc=title, total=total, unit="batch", disable=not title, mininterval=interval
    ) as bar:
        _open_bars.append(bar)
        try:
            yield
        finally:
            jax.effects_barrier()
            _open_bars.remove(bar)


def _advance_bar(_: Array) -> None:
    _open_bars[-1].update()


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _count_batches(
    segmenter: nn.Module,
    refiner: nn.Module,
    num_iterations: int,
    num_classes: int,
    report_progress: bool,
    variables: dict[str, Variables],
    batches: tuple[Array, Array],
    step_sizes: Float[Array, " s"],
) -> tuple[Int[Array, "n b k k"], Int[Array, "n b s t k k"]]:
    def count_batch(batch):
        images, labels = batch
        candidate = propose(segmenter, variables["segmenter"], to_unit_range(images))
        condition = refiner.apply(
            variables["refiner"], candidate, method=refiner.condition
        )

        def reconstruct(y):
            return refiner.apply(
                variables["refiner"], y, condition, method=refiner.reconstruct
            )

        count_image = partial(confusion_matrix, num_classes=num_classes)

        def observe(y):
            return jax.vmap(count_image)(labels, jnp.argmax(y, axis=-1))

        refined = sweep(
            reconstruct,
            candidate.y,
            step_sizes=step_sizes,
            num_iterations=num_iterations,
            observe=observe,
        )
        if report_progress:
            jax.debug.callback(_advance_bar, refined[0, 0, 0, 0, 0])
        return observe(candidate.y), jnp.moveaxis(refined, 2, 0)

    return jax.lax.map(count_batch, batches)
