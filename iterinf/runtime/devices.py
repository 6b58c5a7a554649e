"""Where arrays lie: batches cut over all devices of all processes, the rest whole.

The same program runs with one device, those of a host, and those of many hosts: XLA
adds what they have to tell each other (`jax.jit` over a mesh).
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from iterinf.errors import UserError

MAX_IN_FLIGHT = 2  # calls handed to a device and not done: enough to keep it busy


@functools.cache
def create_mesh() -> Mesh:
    """All devices on one axis; those of a process follow each other."""
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)


def create_sharding(batch_size: int, *, axis: int = 0) -> NamedSharding:
    """Shards an axis of a batch over all devices.

    Args:
      batch_size: length of the axis. If it is no multiple of the number of devices,
        the batch lies whole on each, and each computes all of it.
      axis: which one.

    Returns:
      Of arrays of any rank above `axis`. Devices of a process hold successive parts.
    """
    mesh = create_mesh()
    name = None if batch_size % mesh.size else "batch"
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, name))


def check_batch_size(batch_size: int, key: str) -> None:
    """Checks that a training batch can be sharded.

    Args:
      batch_size: of the whole batch.
      key: of the config, for the error.

    Raises:
      UserError: if it is no multiple of the number of devices.
    """
    num_devices = jax.device_count()
    if batch_size % num_devices:
        raise UserError(
            f"{key} is {batch_size}, expected a multiple of the {num_devices} devices "
            f"that share a batch: {num_devices * math.ceil(batch_size / num_devices)}, "
            "or fewer devices (CUDA_VISIBLE_DEVICES=0)"
        )


def create_replication() -> NamedSharding:
    """Every array whole on every device."""
    return NamedSharding(create_mesh(), PartitionSpec())


def replicate(tree: PyTree) -> PyTree:
    """Arrays, the same in every process, whole on every device."""
    return jax.jit(_identity, out_shardings=create_replication())(tree)


def _identity(tree: PyTree) -> PyTree:
    return tree


def divide(tree: PyTree[np.ndarray], *, axis: int = 0) -> PyTree[jax.Array]:
    """Arrays that every process holds whole, cut along an axis over all devices."""

    def place(array: np.ndarray) -> jax.Array:
        sharding = create_sharding(array.shape[axis], axis=axis)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(place, tree)


def use_all_devices() -> contextlib.AbstractContextManager[Any]:
    """A context in which compiled functions know how batches are cut."""
    return jax.set_mesh(create_mesh())


class DividedBatches(Iterator[PyTree[jax.Array]]):
    """Batches that processes hold in parts, in their order, cut over all devices.

    A batch is on its way to the devices while they still work on the one before.
    """

    def __init__(self, parts: Any, batch_size: int):
        """Takes over an iterator of pytrees of NumPy arrays, with a `close`.

        Args:
          parts: arrays of batch_size / number of processes on their first axis.
          batch_size: of the whole.
        """
        self._parts = parts
        self._place = functools.partial(
            jax.make_array_from_process_local_data, create_sharding(batch_size)
        )

    def __next__(self) -> PyTree[jax.Array]:
        """Returns the next batch."""
        return jax.tree.map(self._place, next(self._parts))

    def close(self) -> None:
        """Ends the threads of the parts."""
        self._parts.close()


def collect(results: Iterable[PyTree[jax.Array]]) -> list[PyTree[jax.Array]]:
    """Collects the results of compiled calls, few of which are under way at a time.

    JAX returns before a call is computed: without a limit the inputs of all calls would
    be in memory at once, and no signal would be answered before the last is done.

    Args:
      results: each is asked for when at most `MAX_IN_FLIGHT` are not computed.
    """
    collected: list[PyTree[jax.Array]] = []
    for result in results:
        collected.append(result)
        if len(collected) > MAX_IN_FLIGHT:
            jax.block_until_ready(collected[-1 - MAX_IN_FLIGHT])
    return collected


def read_memory() -> int | None:
    """Bytes of memory that every device has; None where JAX does not know, as on CPUs.

    The same in all processes, which must agree on what they compile.
    """
    own = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if own is None or jax.process_count() == 1:
        return own
    return int(multihost_utils.process_allgather(np.asarray(own)).min())


def gather(tree: PyTree[jax.Array]) -> PyTree[jax.Array]:
    """Results of a compiled function, inside it, whole on every device."""
    return jax.lax.with_sharding_constraint(tree, create_replication())
