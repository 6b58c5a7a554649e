"""What segmenters and refiners are trained on."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iterinf.errors import UserError
from iterinf.segmenters.precomputed import Precomputed
from iterinf.training.corruption import check_constraint, corrupt
from iterinf.training.loop import LossFunction, Params
from iterinf.training.losses import (
    LossSum,
    compute_cross_entropy,
    compute_reconstruction_loss,
    encode_labels,
)
from iterinf.types import Batch, Candidate, Segmenter

Variables = dict[str, Any]  # of a Flax module, by collection
Networks = dict[str, Variables]  # by "segmenter" and "refiner"
Predict = Callable[[Params, Networks, Batch], Float[Array, "b h w k"]]


def propose(segmenter: Segmenter, variables: Variables, batch: Batch) -> Candidate:
    """Runs a segmenter for a refiner: y = f_L(x), h = f_l(x) (Eq. 3).

    Args:
      segmenter: the network.
      variables: its variables.
      batch: images in [0, 1]; `outputs`, if there are any, stand in for the network's.

    Returns:
      The candidate, y as probabilities.
    """
    logits, features = _segment(segmenter, variables, batch)
    return Candidate(nn.softmax(logits), features, batch.image)


def _segment(
    segmenter: Segmenter, variables: Variables, batch: Batch
) -> tuple[Float[Array, "b h w k"], dict[str, Float[Array, "b _ _ _"]]]:
    if batch.outputs and isinstance(segmenter, nn.Module):  # a chain hands them on
        segmenter, variables = Precomputed(segmenter.num_classes, segmenter.dtype), {}
    return segmenter.apply(variables, batch.image, **batch.outputs)


def combine(params: Params, frozen: Networks) -> Networks:
    """The variables of both networks, trained parameters in place of frozen ones.

    Args:
      params: what is trained: of the "refiner", of the "segmenter", or of both.
      frozen: all other variables.
    """
    names = ("segmenter", "refiner")
    trained: Networks = {name: {"params": params[name]} for name in params}
    return {name: frozen.get(name, {}) | trained.get(name, {}) for name in names}


def set_scalars(networks: Networks, values: Mapping[str, float]) -> Networks:
    """Gives parameters of the refiner that are single numbers other values.

    Raises:
      UserError: if the refiner has no such parameter.
    """
    variables = networks["refiner"]
    params = variables.get("params", {})
    known = [
        name for name, value in params.items() if getattr(value, "shape", None) == ()
    ]
    for name in values:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UserError(
                f"selection.parameters names {name!r}; this refiner's numbers: {listed}"
            )
    numbers = {name: jnp.float32(value) for name, value in values.items()}
    return networks | {"refiner": variables | {"params": params | numbers}}


def make_segmenter_loss(
    segmenter: nn.Module, class_weights: Float[np.ndarray, " k"] | None = None
) -> LossFunction:
    """Cross-entropy of the segmenter's logits, by class weights if there are any."""
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
) -> LossFunction:
    """Makes the loss of Eq. 5 at a corrupted y; see `combine` for what is trained.

    With recycling it is the mean of Eq. 5 at y_0, the corrupted y, and at the iterates
    that the refiner itself reaches from there,

      y_(i+1) = y_i + recycle_step_size * (r(y_i) - y_i),   i < num_recycles,

    through which no gradient flows: training then sees what the loop of Eq. 6 visits.

    Args:
      segmenter: gives y and h, where they do not come with a batch.
      refiner: reconstructs the truth from the corrupted y and h.
      start: what is corrupted: "y" (training scenario 1 of Figure 1: DAE(y)) or
        "y_true" (scenario 2: DAE(y_true); void pixels are all zeros before noise).
      sigma: of the noise.
      constraint: see `corrupt`.
      squared_error: weight of Eq. 5's first term.
      cross_entropy: weight of its second term.
      proposal_cross_entropy: weight of -log y_label, which keeps y a segmentation where
        the segmenter is trained with the refiner, end to end.
      num_iterations: reconstructions, one of the other, that the loss looks through:
        1 for a DAE; 5 train a CRF-RNN.
      num_recycles: further iterates at which the loss is taken, 0 or more.
      recycle_step_size: of these iterates, above 0 up to 1.

    Raises:
      UserError: unknown start.

    Source: paper, Eq. 5 and Figure 1; recycling as in Jumper et al. 2021 (AlphaFold).
    """
    if start not in ("y", "y_true"):
        raise UserError(f"unknown start {start!r} of a DAE; known: 'y', 'y_true'")
    check_constraint(constraint)

    def compute_loss(params, frozen, batch: Batch, key):
        noise_key, dropout_key = jax.random.split(key)
        networks = combine(params, frozen)
        segmenter_logits, features = _segment(segmenter, networks["segmenter"], batch)
        y = nn.softmax(segmenter_logits)
        candidate = Candidate(y, features, batch.image)
        if start == "y_true":
            truth = encode_labels(batch.label, candidate.y.shape[-1])
            candidate = candidate._replace(y=truth)
        noisy = corrupt(noise_key, candidate.y, sigma=sigma, constraint=constraint)
        condition = refiner.apply(
            networks["refiner"],
            candidate._replace(y=noisy),
            train=True,
            rngs={"dropout": dropout_key},
            method=refiner.condition,
        )
        losses, y = [], noisy
        for _ in range(num_recycles + 1):
            logits = _compute_logits(
                refiner, networks["refiner"], y, condition, num_iterations
            )
            part = compute_reconstruction_loss(
                logits,
                batch.label,
                squared_error=squared_error,
                cross_entropy=cross_entropy,
            )
            losses.append(part.total / (num_recycles + 1))
            step = recycle_step_size * (nn.softmax(logits) - y)
            y = jax.lax.stop_gradient(y + step)
        loss = LossSum(sum(losses[1:], losses[0]), part.num_pixels)
        if not proposal_cross_entropy:
            return loss
        other = compute_cross_entropy(segmenter_logits, batch.label)
        return loss._replace(total=loss.total + proposal_cross_entropy * other.total)

    return compute_loss


def make_reconstruction(
    segmenter: nn.Module, refiner: nn.Module, num_iterations: int = 1
) -> Predict:
    """Makes the prediction that validation scores: logits of r(y), without noise.

    r is applied as often as in training.
    """

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
    """Logits of r applied several times to y."""
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
    """Images from uint8 to float32 in [0, 1]."""
    return batch._replace(image=batch.image.astype(jnp.float32) / 255)
