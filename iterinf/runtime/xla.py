"""JAX and XLA compilation settings."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jaxlib.version

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_LEVEL = "xla_backend_optimization_level"


def keep_compiled_programs() -> None:
    """Enables JAX's persistent compilation cache, unless the user has set a folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path.home() / ".cache" / "iterinf" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def convolve_on_all_cores() -> None:
    """Makes XLA use Eigen for convolutions on CPUs, unless the user has set the flag.

    jaxlib 0.10 uses YNN, which runs small convolutions on one core. Other versions lack
    the flag, and XLA aborts on unknown flags. Must be called before JAX computes
    anything.
    """
    given = os.environ.get("XLA_FLAGS", "")
    version = tuple(map(int, jaxlib.version.__version__.split(".")[:2]))
    if version == (0, 10) and _LIBRARY not in given:
        choice = f"--{_LIBRARY}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
        os.environ["XLA_FLAGS"] = f"{given} {choice}".strip()


def compile_for_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that runs once, on CPUs with little optimisation.

    Initialising a network, whose random bits XLA unrolls, then takes a quarter of the
    time, with the same result. A level set by the user is kept.
    """
    if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
        return jax.jit(function)
    return jax.jit(function, compiler_options={_LEVEL: 1})
