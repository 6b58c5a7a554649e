"""The table of a trace: what the operations of a kind took."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from iterinf.runtime.profiling import trace_all
from launch.trace_table import shorten, sum_by_kind


def test_a_table_sums_operations_of_a_kind(tmp_path):
    @jax.jit
    def compute(x):
        return jnp.sort(jnp.sort(x @ x) @ x)

    x = jax.random.normal(jax.random.key(0), (300, 300))
    compute(x).block_until_ready()
    with trace_all(tmp_path, on=True):
        compute(x).block_until_ready()
    (path,) = tmp_path.rglob("*.xplane.pb")
    sums = sum_by_kind(path)
    assert sums["sort"] > 0.1 * sums.total()  # the products: by the library of the day
    assert all(1e3 < nanoseconds < 1e10 for nanoseconds in sums.values())


def test_of_a_gpu_its_streams_are_summed(tmp_path):
    """A trace as the CUDA profiler writes it: the host's events hold operations too."""
    text = """
    planes { name: "/host:CPU"
      lines { name: "thread" events { metadata_id: 1 duration_ps: 9000000
        stats { metadata_id: 1 str_value: "cudnn-conv.1" } } }
      event_metadata { key: 1 value { id: 1 name: "start" } }
      stat_metadata { key: 1 value { id: 1 name: "hlo_op" } } }
    planes { name: "/device:GPU:0"
      lines { name: "Stream #7(Compute)"
        events { metadata_id: 1 duration_ps: 5000000
          stats { metadata_id: 1 str_value: "cudnn-conv.1" } }
        events { metadata_id: 1 duration_ps: 2000000
          stats { metadata_id: 1 str_value: "cudnn-conv.2" } }
        events { metadata_id: 2 duration_ps: 1000000 } }
      lines { name: "XLA Modules" events { metadata_id: 2 duration_ps: 8000000 } }
      event_metadata { key: 1 value { id: 1 name: "sm90_xmma" } }
      event_metadata { key: 2 value { id: 2 name: "loop_add_fusion_3" } }
      stat_metadata { key: 1 value { id: 1 name: "hlo_op" } } }
    """
    path = tmp_path / "trace.xplane.pb"
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace(text))
    assert sum_by_kind(path) == {"cudnn-conv": 7000, "loop_add_fusion": 1000}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fusion.12.clone.1", "fusion"),
        ("dot_general.3", "dot_general"),
        ("copy", "copy"),
        ("convolution.2.remat", "convolution"),
        ("loop_add_fusion_3", "loop_add_fusion"),
        ("void cudnn::pool<float, 2>(float*)", "cudnn::pool"),
    ],
)
def test_names_lose_their_numbers(name, expected):
    assert shorten(name) == expected
