"""Where arrays lie: batches cut over all devices of all processes, the rest whole.

The same program runs with one device, those of a host, and those of many hosts: XLA
adds what they have to tell each other (`jax.jit` over a mesh).
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def create_sharding(batch_size: int, *, axis: int = 0) -> NamedSharding:
    """Cuts an axis of a batch into as many equal parts as devices can share.

    parts = gcd(batch size, number of devices); where parts are fewer than devices,
    several devices hold, and compute, the same part.

    Args:
      batch_size: length of the axis.
      axis: which one.

    Returns:
      Of arrays of any rank above `axis`. Devices of a process hold successive parts.
    """
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    parts = math.gcd(batch_size, len(devices))
    mesh = Mesh(
        np.asarray(devices).reshape(parts, -1),
        ("parts", "copies"),
        axis_types=(AxisType.Auto,) * 2,
    )
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "parts"))


def create_replication() -> NamedSharding:
    """Every array whole on every device."""
    return NamedSharding(create_sharding(1).mesh, PartitionSpec())


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


def read_memory() -> int | None:
    """Bytes of memory that a device has; None where JAX does not know, as on CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def gather(tree: PyTree[jax.Array]) -> PyTree[jax.Array]:
    """Results of a compiled function, inside it, whole on every device."""
    return jax.lax.with_sharding_constraint(tree, create_replication())
