"""Data parallelism: batches are sharded over all devices, the rest is replicated.

The same program runs on one device, one host or many hosts; XLA inserts the
communication (`jax.jit` over a mesh).
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from iterinf.errors import UserError

MAX_IN_FLIGHT = 2  # unfinished calls per device: enough to keep it busy


@functools.cache
def create_mesh() -> Mesh:
    """Creates a mesh of all devices on one axis, grouped by process."""
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)


def create_sharding(batch_size: int, *, axis: int = 0) -> NamedSharding:
    """Creates the sharding of a batch axis over all devices.

    The devices of a process hold consecutive parts. The batch is replicated instead
    unless its size is a multiple of the number of devices.
    """
    mesh = create_mesh()
    name = None if batch_size % mesh.size else "batch"
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, name))


def check_batch_size(batch_size: int, key: str) -> None:
    """Raises UserError, with the config key, unless all devices can share a batch."""
    num_devices = jax.device_count()
    if batch_size % num_devices:
        raise UserError(
            f"{key} is {batch_size}, expected a multiple of the number of devices "
            f"({num_devices}), or fewer devices (CUDA_VISIBLE_DEVICES=0)"
        )


def create_replication() -> NamedSharding:
    """Creates the sharding that replicates an array on every device."""
    return NamedSharding(create_mesh(), PartitionSpec())


def replicate_outputs(tree: PyTree[jax.Array]) -> PyTree[jax.Array]:
    """Replicates results on every device, inside a compiled function."""
    return jax.lax.with_sharding_constraint(tree, create_replication())


def replicate(tree: PyTree) -> PyTree:
    """Replicates arrays, equal in every process, on every device."""
    return jax.jit(replicate_outputs, out_shardings=create_replication())(tree)


def shard(tree: PyTree[np.ndarray], *, axis: int = 0) -> PyTree[jax.Array]:
    """Shards arrays that every process holds in full over all devices."""

    def place(array: np.ndarray) -> jax.Array:
        sharding = create_sharding(array.shape[axis], axis=axis)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(place, tree)


def use_all_devices() -> contextlib.AbstractContextManager[Any]:
    """Returns a context that sets the mesh for compiled functions."""
    return jax.set_mesh(create_mesh())


class ShardedBatches(Iterator[PyTree[jax.Array]]):
    """Batches assembled from the parts of all processes, sharded over all devices.

    A batch is transferred while the devices still work on the previous one.
    """

    def __init__(self, parts: Any, batch_size: int):
        """Wraps an iterator, with a `close` method, over this process's parts."""
        self._parts = parts
        self._place = functools.partial(
            jax.make_array_from_process_local_data, create_sharding(batch_size)
        )

    def __next__(self) -> PyTree[jax.Array]:
        """Returns the next batch."""
        return jax.tree.map(self._place, next(self._parts))

    def close(self) -> None:
        """Stops the threads of the wrapped iterator."""
        self._parts.close()


def collect(results: Iterable[PyTree[jax.Array]]) -> list[PyTree[jax.Array]]:
    """Collects the results of compiled calls, with few of them in flight.

    JAX dispatches asynchronously: without a limit the inputs of all calls would be in
    memory at once, and signals would be handled only after the last call. The next
    result is requested when at most `MAX_IN_FLIGHT` are unfinished.
    """
    collected: list[PyTree[jax.Array]] = []
    for result in results:
        collected.append(result)
        if len(collected) > MAX_IN_FLIGHT:
            jax.block_until_ready(collected[-1 - MAX_IN_FLIGHT])
    return collected


def read_memory() -> int | None:
    """Returns the bytes of memory per device; None if unknown, as on CPUs.

    The result is the same in all processes, which must compile the same program.
    """
    own = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if own is None or jax.process_count() == 1:
        return own
    return int(multihost_utils.process_allgather(np.asarray(own)).min())
