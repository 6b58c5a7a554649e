"""Where arrays lie: batches cut over all devices of all processes, the rest whole.

The same program runs with one device, those of a host, and those of many hosts: XLA
adds what they have to tell each other (`jax.jit` over a mesh).
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

MAX_IN_FLIGHT = 2  # calls handed to a device and not done: enough to keep it busy


@functools.cache
def create_mesh() -> Mesh:
    """All devices, with an axis for every prime factor of their number.

    Some axes together cut a batch into as many parts as its size allows; those of the
    processes come first, so that devices of a process hold successive parts.
    """
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    processes = jax.process_count()
    factors = _factorize(processes) + _factorize(len(devices) // processes) or [1]
    names = tuple(f"axis_{i}" for i in range(len(factors)))
    return Mesh(
        np.asarray(devices).reshape(factors),
        names,
        axis_types=(AxisType.Auto,) * len(names),
    )


def _factorize(number: int) -> list[int]:
    """Prime factors, small ones first."""
    for factor in range(2, number + 1):
        if number % factor == 0:
            return [factor, *_factorize(number // factor)]
    return []


def _choose_axes(sizes: Mapping[str, int], batch_size: int) -> tuple[str, ...]:
    """The axes of a mesh that cut a batch into as many equal parts as there can be."""
    chosen, left = [], batch_size
    for name, size in sizes.items():
        if left % size == 0:
            chosen.append(name)
            left //= size
    return tuple(chosen)


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
    mesh = create_mesh()
    axes = _choose_axes(mesh.shape, batch_size)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, axes or None))


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


def map_images(
    function: Callable[[PyTree, PyTree], PyTree], images: PyTree, shared: PyTree
) -> PyTree:
    """Calls a function image by image, so that memory holds the work of one.

    In `use_all_devices`, every device goes through the images that it holds; elsewhere
    `jax.lax.map` alone.

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

    if mesh.empty or mesh.shape != create_mesh().shape or mesh.size == 1:
        return map_part(images, shared)
    axes = _choose_axes(mesh.shape, len(jax.tree.leaves(images)[0]))
    parts = PartitionSpec(axes or None)
    return jax.shard_map(
        map_part, in_specs=(parts, PartitionSpec()), out_specs=parts, check_vma=False
    )(images, shared)


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
