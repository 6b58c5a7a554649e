"""Times a compiled call beside its peers on the same work, in one run."""

import functools
import math
import operator
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

_PAUSE = 0.1  # seconds in which the threads of the other side fall asleep
_SHORTEST = 0.02  # seconds that are timed; calls that take less are timed several
_FEWEST = 3  # calls of each side that a median is over, whatever the limit


class Case(NamedTuple):
    """One call of ours, and the same work by others."""

    name: str
    sizes: str  # of the work, in words
    function: Any  # jitted, or compiled with its first call
    args: tuple[Any, ...]
    # By name; the fastest is the one that counts.
    peers: Mapping[str, Callable[[], Any]] = MappingProxyType({})
    flops: float | None = None  # of the call; None: not meaningful
    dtype: str = "float32"  # that it computes in

    def call(self) -> Any:
        """Our call."""
        return self.function(*self.args)


def measure(
    case: Case,
    *,
    repeats: int,
    limit: float = math.inf,
    compile_time: bool = True,
) -> dict[str, Any]:
    """Measures a case.

    Args:
      case: what to call.
      repeats: of each side, interleaved, after one that is not counted.
      limit: seconds after which no repeat begins, but three there are.
      compile_time: whether compiling is timed; it takes two more compilations.

    Returns:
      What the JSON line holds: medians in seconds; the median of the paired ratios and
      its range; FLOP/s, its fraction of the peak; bytes; seconds of compiling.
    """
    compiling = {}
    if compile_time and hasattr(case.function, "lower"):
        compiling = time_compilation(case.function, case.args)
    calls: dict[str, Callable[[], Any]] = {"ours": case.call, **case.peers}
    seconds = time_interleaved(calls, repeats, limit)
    ours = statistics.median(seconds["ours"])
    result = {
        "name": case.name,
        "sizes": case.sizes,
        "dtype": case.dtype,
        "repeats": len(seconds["ours"]),
        "seconds": _round(ours),
    }
    if case.peers:
        peers = {name: statistics.median(seconds[name]) for name in case.peers}
        best = min(peers, key=peers.__getitem__)
        ratios = list(map(operator.truediv, seconds["ours"], seconds[best]))
        result |= {
            "peer": best,
            "peer_seconds": _round(peers[best]),
            "ratio": _round(statistics.median(ratios)),
            "ratio_range": [_round(min(ratios)), _round(max(ratios))],
            "other_peers": {
                name: _round(value) for name, value in peers.items() if name != best
            },
        }
    if case.flops is not None:
        result["gflops_per_second"] = _round(case.flops / ours / 1e9)
        peak = measure_peak(case.dtype)
        result["fraction_of_peak"] = _round(case.flops / ours / peak)
    return result | compiling | describe_device()


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, limit: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each call, in turns, after a first round that is not counted.

    Every call is waited for. Of short ones, several in a row make up .02 s, of which
    the mean counts.

    Args:
      calls: by name.
      repeats: rounds that count.
      limit: seconds of them after which no round begins, but three there are.

    Returns:
      By name, one number a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    started = time.perf_counter()
    for i in range(repeats):
        if i >= _FEWEST and time.perf_counter() - started > limit:
            break
        for name, call in calls.items():
            time.sleep(_PAUSE)
            seconds[name].append(_time(call))
    return seconds


def _time(call: Callable[[], Any]) -> float:
    started, count, passed = time.perf_counter(), 0, 0.0
    while passed < _SHORTEST:
        jax.block_until_ready(call())
        count += 1
        passed = time.perf_counter() - started
    return passed / count


def trace(case: Case, folder: pathlib.Path) -> None:
    """Writes a trace of our call, which has run before, into a new folder."""
    name = re.sub(r"\W+", "_", f"{case.name} {case.sizes}")
    with jax.profiler.trace(folder / name):
        jax.block_until_ready(case.call())


def summarize(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def time_compilation(function: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Seconds of compiling anew and from a persistent cache; bytes that it needs."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(names, (folder, 0.0), strict=True):
            jax.config.update(name, value)
        for state in ("cold", "cached"):
            compilation_cache.reset_cache()
            jax.clear_caches()
            started = time.perf_counter()
            memory = function.lower(*args).compile().memory_analysis()
            seconds[f"compile_{state}"] = _round(time.perf_counter() - started)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    if memory is None:  # not every backend says
        return seconds
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return seconds | {"megabytes": round(total / 1e6)}


@functools.cache
def measure_peak(dtype: str = "float32") -> float:
    """The FLOP/s of the faster of a large matrix product and a large convolution.

    Of random numbers: GPUs take less power, and are faster, over constants.
    """
    on_cpu = jax.default_backend() == "cpu"
    draw = functools.partial(jax.random.normal, jax.random.key(0), dtype=dtype)
    n = 2048 if on_cpu else 16384
    x = draw((n, n))
    images, channels = (8, 256) if on_cpu else (256, 512)
    maps = draw((images, 56, 56, channels))
    kernel = draw((3, 3, channels, channels))
    multiply = jax.jit(jnp.dot)
    convolve = jax.jit(
        functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )
    seconds = time_interleaved(
        {"dot": lambda: multiply(x, x), "conv": lambda: convolve(maps, kernel)}, 5
    )
    flops = {"dot": 2 * n**3, "conv": 2 * maps.size * 9 * channels}
    return max(flops[name] / min(seconds[name]) for name in flops)


def count_flops(function: Any, *args: Any) -> float:
    """Multiplications and additions, as XLA counts them, of a call without loops.

    Lowered for a TPU, where gradients that are loops of ours on CPUs are XLA's; counted
    by the CPU's XLA, as JAX has no access to the count of others.
    """
    shapes = jax.eval_shape(lambda *args: args, *args)
    with jax.default_device(jax.devices("cpu")[0]):
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
        analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"])


def describe_device() -> dict[str, str]:
    """The device and its software."""
    kind = jax.devices()[0].device_kind
    return {
        "device": f"{jax.device_count()} x {kind}, {os.cpu_count()} CPU cores",
        "jax": jax.__version__,
    }


def _round(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")
