"""Types shared between modules. Axes: b h w c, k classes."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax.core import FrozenDict
from jaxtyping import Array, Float, Int, PyTree, Shaped

Size = tuple[Any, Any]  # height, width: int, or symbolic during export
MONITORS = ("validation/loss", "validation/mean_iou")  # in training, of validation
METRICS = ("mean_iou", "boundary_f1")  # criteria of the choice on validation


class Batch(NamedTuple):
    """Images with their label maps."""

    image: Float[Array, "b h w 3"]  # RGB in [0, 1]
    label: Int[Array, "b h w"]  # 0..k-1; k and above: void, never counted
    # Precomputed outputs of another network, by name.
    outputs: Mapping[str, Float[Array, "b _ _ _"]] = FrozenDict()


class Candidate(NamedTuple):
    """The initial prediction for a batch: the input of every refiner (Eq. 3)."""

    y: Float[Array, "b h w k"]  # class probabilities, sum to one over k
    features: dict[str, Float[Array, "b _ _ _"]]  # h by name: input, pool1..pool5
    image: Float[Array, "b h w 3"]  # RGB in [0, 1]


@runtime_checkable
class Segmenter(Protocol):
    """A hashable network images -> (logits, features): a Flax module or a `Chain`."""

    def apply(self, variables: Any, images: Any, **outputs: Any) -> Any:
        """Returns logits [b h w k] and features by name."""


class Refinement(NamedTuple):
    """The result of the loop of Eq. 6."""

    y: PyTree[Shaped[Array, "..."]]  # [b h w k], or the state after the last step
    observations: PyTree[Shaped[Array, "t ..."]]  # observe(y) after each update


class Selection(NamedTuple):
    """A choice made on validation."""

    step_size: float
    num_iterations: int
    mean_iou: float  # on validation, a fraction
    parameters: dict[str, float]  # chosen scalar parameters by name
    boundary_f1: float | None = None  # on validation; None in earlier versions
