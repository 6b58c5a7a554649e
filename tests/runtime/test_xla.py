"""What the main program sets before JAX starts."""

import os

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from iterinf.runtime.xla import compile_for_once, convolve_on_all_cores


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ("0.10.2", "", "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_"),
        ("0.10.0", "--xla_dump_to=x", "--xla_dump_to=x --xla_cpu_experimental_ynn_fus"),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=", None),
        ("0.7.2", "--xla_dump_to=x", None),
        ("0.11.0", "", None),
    ],
)
def test_flags_are_added_where_they_are_known(monkeypatch, version, given, expected):
    monkeypatch.setattr(jaxlib.version, "__version__", version)
    monkeypatch.setenv("XLA_FLAGS", given)
    convolve_on_all_cores()
    if expected is None:
        assert os.environ["XLA_FLAGS"] == given
    else:
        assert os.environ["XLA_FLAGS"].startswith(expected)


def test_convolutions_are_left_to_eigen():
    """Under pytest, whose start sets the flags."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")

    lowered = jax.jit(convolve).lower(jnp.ones((2, 16, 8, 8)), jnp.ones((16, 16, 3, 3)))
    assert "ynn_fusion" not in lowered.compile().as_text()


@pytest.mark.parametrize("flags", ["", "--xla_backend_optimization_level=0"])
def test_what_runs_once_gives_the_same_numbers(monkeypatch, flags):
    """Under an optimisation level of ours, and under the user's."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    key = jax.random.key(0)
    found = compile_for_once(lambda key: jax.random.normal(key, (4, 3)))(key)
    np.testing.assert_array_equal(found, jax.random.normal(key, (4, 3)))
