"""Functions of one image, for a batch of them."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree


def map_images(
    function: Callable[[PyTree, PyTree], PyTree], images: PyTree, shared: PyTree
) -> PyTree:
    """Calls a function image by image, so that memory holds the work of one.

    Under a mesh (`jax.set_mesh`) every device goes through the images that it holds.

    Args:
      function: (image, shared) -> arrays.
      images: arrays of all images, [b, ...].
      shared: what else it reads that is traced, the same for all.

    Returns:
      What it returns, [b, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()

    def map_part(images: PyTree, shared: PyTree) -> PyTree:
        return jax.lax.map(lambda image: function(image, shared), images)

    if mesh.empty or mesh.size == 1 or len(jax.tree.leaves(images)[0]) % mesh.size:
        return map_part(images, shared)
    parts = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        map_part, in_specs=(parts, PartitionSpec()), out_specs=parts, check_vma=False
    )(images, shared)
