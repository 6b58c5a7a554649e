"""Label maps of images, before and after refinement."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from iterinf.inference import refine
from iterinf.objectives import Variables, propose, to_unit_range


@partial(jax.jit, static_argnums=(0, 1), static_argnames="num_iterations")
def predict_labels(
    segmenter: nn.Module,
    refiner: nn.Module,
    segmenter_variables: Variables,
    refiner_variables: Variables,
    images: UInt8[Array, "b h w 3"],
    *,
    step_size: Float[Array, ""],
    num_iterations: int,
) -> tuple[Int[Array, "b h w"], Int[Array, "b h w"]]:
    """Segments images and refines the result.

    Args:
      segmenter: proposes y and h.
      refiner: reconstructs.
      segmenter_variables: of the segmenter.
      refiner_variables: of the refiner.
      images: RGB.
      step_size: of Eq. 6.
      num_iterations: of Eq. 6.

    Returns:
      The likeliest class of every pixel, by the segmenter and after refinement.
    """
    candidate = propose(segmenter, segmenter_variables, to_unit_range(images))
    apply = partial(refiner.apply, refiner_variables)
    condition = apply(candidate, method=refiner.condition)
    refinement = refine(
        lambda y: apply(y, condition, method=refiner.reconstruct),
        candidate.y,
        step_size=step_size,
        num_iterations=num_iterations,
    )
    return jnp.argmax(candidate.y, axis=-1), jnp.argmax(refinement.y, axis=-1)
