"""Max pooling with switches beside window functions of Flax and PyTorch."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from iterinf.ops.switches import max_pool_with_switches
from launch.benchmarks.measure import Case
from launch.benchmarks.sizes import choose_work
from launch.benchmarks.torch_networks import list_peers, to_maps


def list_switches() -> Iterator[Case]:
    """The gradient of pooling, of the sum of squares of what is pooled."""
    work = choose_work()
    x = np.random.default_rng(0).normal(size=work.pooled_map).astype(np.float32)
    ours = jax.jit(jax.grad(lambda x: jnp.sum(max_pool_with_switches(x)[0] ** 2)))
    pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    flax = jax.jit(jax.grad(lambda x: jnp.sum(pool(x) ** 2)))
    np.testing.assert_allclose(ours(x), flax(x))
    maps = jnp.asarray(x, work.dtype)

    def make_peer(compile, *, channels_last):
        torch_maps = to_maps(x, channels_last=channels_last, dtype=work.dtype)
        torch_maps.requires_grad_()

        def differentiate() -> torch.Tensor:
            pooled = functional.max_pool2d(torch_maps, 2)
            return torch.autograd.grad(pooled.square().sum(), torch_maps)[0]

        return compile(differentiate)

    sizes = "x".join(map(str, work.pooled_map))
    peers: dict[str, dict[str, Callable[[], Any]]] = {
        "Flax": {"nn.max_pool": functools.partial(flax, maps)},
        "PyTorch": list_peers(make_peer),
    }
    for name, calls in peers.items():
        yield Case(
            "switches",
            f"{sizes}, beside {name}",
            ours,
            (maps,),
            calls,
            dtype=work.dtype,
        )
