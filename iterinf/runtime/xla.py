"""How JAX compiles, where its defaults are not the best there is."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jaxlib.version

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_LEVEL = "xla_backend_optimization_level"


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, unless the user has placed it."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path.home() / ".cache" / "iterinf" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def convolve_on_all_cores() -> None:
    """Has Eigen compute convolutions on a CPU, unless the user has chosen.

    jaxlib 0.10 hands them to YNN, which runs small ones on one core. Other versions do
    not know the flag, and XLA ends a process over flags that it does not know. To be
    called before JAX computes anything.
    """
    given = os.environ.get("XLA_FLAGS", "")
    version = tuple(map(int, jaxlib.version.__version__.split(".")[:2]))
    if version == (0, 10) and _LIBRARY not in given:
        choice = f"--{_LIBRARY}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
        os.environ["XLA_FLAGS"] = f"{given} {choice}".strip()


def compile_for_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what runs a single time: on a CPU with little optimisation.

    Initialisation of a network, whose random bits XLA unrolls, then takes a quarter of
    the time, and gives the same numbers. A level that the user has chosen is kept.
    """
    if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
        return jax.jit(function)
    return jax.jit(function, compiler_options={_LEVEL: 1})
