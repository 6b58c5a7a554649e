"""What every test runs under: one CPU, strict shapes, a seeded generator."""

import fcntl
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Sets up JAX before any test module is imported."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what waits for a whole run."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_sessionstart() -> None:
    """Has JAX convolve as the main program does; shapes are checked by now."""
    from iterinf.runtime.xla import convolve_on_all_cores  # noqa: PLC0415

    convolve_on_all_cores()
    # Tests compile more than they compute; XLA ends over flags that it does not know.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
    if jax.__version_info__ < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def read_times(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """When each file and folder below a folder was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[pathlib.Path]:
    """The workdir of a finished run of tests/tiny.py.

    The processes of a test run share one: the first to ask for it makes it. A test that
    wrote there would change what others see, so that the last one to use it fails.
    """
    from iterinf.experiment.modes import run  # noqa: PLC0415
    from tests import tiny  # noqa: PLC0415

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "finished" / "results").exists():
            run(tiny.get_config(), root / "finished", "run", "the command")
    before = read_times(root / "finished")
    yield root / "finished"
    assert read_times(root / "finished") == before


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts anew, with the same seed, in every test."""
    return np.random.default_rng(0)
