"""Mapping of functions of one image over a batch."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree


def map_images(
    function: Callable[[PyTree, PyTree], PyTree], images: PyTree, shared: PyTree
) -> PyTree:
    """Maps a function (image, shared) -> arrays over images [b, ...] sequentially.

    Takes the memory of a single image. Under a mesh (`jax.set_mesh`) every device
    processes its own images.
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
