"""What segmenters and refiners are trained on."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iterinf.errors import check_known
from iterinf.segmenters.precomputed import Precomputed
from iterinf.training.corruption import CONSTRAINTS, corrupt
from iterinf.training.loop import LossFunction, Params
from iterinf.training.losses import (
    LossSum,
    compute_cross_entropy,
    compute_reconstruction_loss,
)
from iterinf.types import Batch, Candidate, Segmenter

Variables = dict[str, Any]  # of a Flax module, by collection
Networks = dict[str, Variables]  # by "segmenter" and "refiner"
Predict = Callable[[Params, Networks, Batch], Float[Array, "b h w k"]]


def propose(segmenter: Segmenter, variables: Variables, batch: Batch) -> Candidate:
    """Computes y = f_L(x) and h = f_l(x) (Eq. 3) of images in [0, 1].

    If the batch has `outputs`, they replace the segmenter's.
    """
    logits, features = _segment(segmenter, variables, batch)
    return Candidate(nn.softmax(logits), features, batch.image)


def _segment(
    segmenter: Segmenter, variables: Variables, batch: Batch
) -> tuple[Float[Array, "b h w k"], dict[str, Float[Array, "b _ _ _"]]]:
    if batch.outputs and isinstance(segmenter, nn.Module):  # a chain passes them on
        segmenter, variables = Precomputed(segmenter.num_classes, segmenter.dtype), {}
    return segmenter.apply(variables, batch.image, **batch.outputs)


def combine(params: Params, frozen: Networks) -> Networks:
    """Joins the parameters of the trained networks with all other variables."""
    names = ("segmenter", "refiner")
    trained: Networks = {name: {"params": params[name]} for name in params}
    return {name: frozen.get(name, {}) | trained.get(name, {}) for name in names}


def set_scalars(networks: Networks, values: Mapping[str, float]) -> Networks:
    """Sets scalar parameters of the refiner.

    Raises:
      UserError: If the refiner has no such parameter.
    """
    variables = networks["refiner"]
    params = variables.get("params", {})
    known = [name for name, x in params.items() if getattr(x, "shape", None) == ()]
    for name in values:
        check_known("scalar parameter in selection.parameters", name, known)
    numbers = {name: jnp.float32(value) for name, value in values.items()}
    return networks | {"refiner": variables | {"params": params | numbers}}


def make_segmenter_loss(
    segmenter: nn.Module, class_weights: Float[np.ndarray, " k"] | None = None
) -> LossFunction:
    """Makes the cross-entropy of the segmenter's logits, optionally weighted."""
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def compute_loss(params, frozen, batch: Batch, key):
        del frozen
        logits, _ = segmenter.apply(
            {"params": params}, batch.image, train=True, rngs={"dropout": key}
        )
        return compute_cross_entropy(logits, batch.label, weights)

    return compute_loss


def make_refiner_loss(
    segmenter: nn.Module,
    refiner: nn.Module,
    *,
    start: str,
    sigma: float,
    constraint: str = "none",
    squared_error: float = 1.0,
    cross_entropy: float = 1.0,
    proposal_cross_entropy: float = 0.0,
    num_iterations: int = 1,
    num_recycles: int = 0,
    recycle_step_size: float = 0.5,
    self_conditioning: float = 0.0,
) -> LossFunction:
    """Makes the loss of Eq. 5 at a corrupted y; `combine` says what is trained.

    Two options train where the loop of Eq. 6 goes, at iterates of the refiner itself
    through which no gradient flows. With self-conditioning a share of the images starts
    at a random point between the corrupted y and its reconstruction,

      y_0 = y + u (r(y) - y),   u ~ U(0, 1),

    for one more forward pass. With recycling the loss is the mean of Eq. 5 at y_0 and

      y_(i+1) = y_i + recycle_step_size * (r(y_i) - y_i),   i < num_recycles.

    Args:
      segmenter: The network that computes y and h, unless they come with a batch.
      refiner: The network that reconstructs the truth from the corrupted y and h.
      start: The input to corrupt: "y" (training scenario 1 of Figure 1: DAE(y)) or
        "y_true" (scenario 2: DAE(y_true); void pixels are all zeros before noise).
      sigma: The standard deviation of the noise.
      constraint: See `corrupt`.
      squared_error: The weight of Eq. 5's first term.
      cross_entropy: The weight of its second term.
      proposal_cross_entropy: The weight of -log y_label, which keeps y a segmentation
        when the segmenter is trained with the refiner, end to end.
      num_iterations: The number of successive reconstructions in the loss: 1 for a DAE,
        5 for a CRF-RNN.
      num_recycles: The number of further iterates at which the loss is computed.
      recycle_step_size: The step size between these iterates, in (0, 1].
      self_conditioning: The fraction of images that start at a point towards r(y).

    Raises:
      UserError: If `start` or `constraint` is unknown.

    Source: paper, Eq. 5 and Figure 1; recycling as in Jumper et al. 2021 (AlphaFold);
      self-conditioning as in Chen et al. 2023 (Analog Bits), with a random u for 1.
    """
    check_known("start", start, ("y", "y_true"))
    check_known("constraint", constraint, CONSTRAINTS)

    def compute_loss(params, frozen, batch: Batch, key):
        noise_key = jax.random.split(key)[0]  # split, so that seeds keep their noise
        networks = combine(params, frozen)
        segmenter_logits, features = _segment(segmenter, networks["segmenter"], batch)
        candidate = Candidate(nn.softmax(segmenter_logits), features, batch.image)
        if start == "y_true":
            truth = jax.nn.one_hot(batch.label, candidate.y.shape[-1])
            candidate = candidate._replace(y=truth)
        noisy = corrupt(noise_key, candidate.y, sigma=sigma, constraint=constraint)
        condition = refiner.apply(
            networks["refiner"],
            candidate._replace(y=noisy),
            method=refiner.condition,
        )
        reconstruct = functools.partial(
            _compute_logits,
            refiner,
            networks["refiner"],
            condition=condition,
            num_iterations=num_iterations,
        )
        losses, y = [], noisy
        if self_conditioning:
            step = _draw_steps(jax.random.fold_in(key, 2), self_conditioning, len(y))
            y = _move(y, reconstruct(y), step)
        for _ in range(num_recycles + 1):
            logits = reconstruct(y)
            part = compute_reconstruction_loss(
                logits,
                batch.label,
                squared_error=squared_error,
                cross_entropy=cross_entropy,
            )
            losses.append(part.total / (num_recycles + 1))
            y = _move(y, logits, recycle_step_size)
        loss = LossSum(sum(losses[1:], losses[0]), part.num_pixels)
        if not proposal_cross_entropy:
            return loss
        other = compute_cross_entropy(segmenter_logits, batch.label)
        return loss._replace(total=loss.total + proposal_cross_entropy * other.total)

    return compute_loss


def _draw_steps(key: Array, share: float, batch_size: int) -> Float[Array, "b 1 1 1"]:
    """Draws step sizes from U(0, 1) for a share of the images, and 0 for the others."""
    share_key, step_key = jax.random.split(key)
    shape = (batch_size, 1, 1, 1)
    moved = jax.random.bernoulli(share_key, share, shape)
    return moved * jax.random.uniform(step_key, shape)


def _move(
    y: Float[Array, "b h w k"], logits: Float[Array, "b h w k"], step: Any
) -> Float[Array, "b h w k"]:
    """Computes Eq. 6 without clip, since a noisy y leaves [0, 1], or gradient."""
    return jax.lax.stop_gradient(y + step * (nn.softmax(logits) - y))


def make_reconstruction(
    segmenter: nn.Module, refiner: nn.Module, num_iterations: int = 1
) -> Predict:
    """Makes the prediction to validate: the logits of r(y), iterated as in training."""

    def predict(params, frozen, batch):
        networks = combine(params, frozen)
        candidate = propose(segmenter, networks["segmenter"], batch)
        variables = networks["refiner"]
        condition = refiner.apply(variables, candidate, method=refiner.condition)
        return _compute_logits(
            refiner, variables, candidate.y, condition, num_iterations
        )

    return predict


def _compute_logits(
    refiner: nn.Module,
    variables: Variables,
    y: Float[Array, "b h w k"],
    condition: Any,
    num_iterations: int,
) -> Float[Array, "b h w k"]:
    """Computes the logits of r, applied several times to y."""
    apply = functools.partial(refiner.apply, variables)
    if num_iterations > 1:  # in a loop XLA's convolutions on a CPU are far slower
        y = jax.lax.fori_loop(
            0,
            num_iterations - 1,
            lambda _, y: apply(y, condition, method=refiner.reconstruct),
            y,
        )
    return apply(y, condition, method=refiner.compute_logits)


def to_unit_range(batch: Batch) -> Batch:
    """Converts images from uint8 to float32 in [0, 1]."""
    return batch._replace(image=batch.image.astype(jnp.float32) / 255)
