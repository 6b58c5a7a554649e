"""What the main program sets before JAX starts."""

import os

import jax
import jax.numpy as jnp
import jaxlib.version
import pytest

from iterinf.compilation import convolve_on_all_cores


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
