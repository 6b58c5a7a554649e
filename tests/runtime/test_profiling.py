"""Traces hold the steps that were asked for, and no other."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from iterinf.runtime.profiling import StepTrace, trace_all


def count_calls(folder):
    """Events of the compiled step in a trace; some versions write two a call."""
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    return names.count("PjitFunction(step_of_test)")


def take_steps(trace, num_steps):
    @jax.jit
    def step_of_test(x):
        return x + 1

    x = jnp.zeros(())
    for _ in range(num_steps):
        trace.advance(x)
        x = step_of_test(x)


@pytest.mark.parametrize(("num_traced", "num_steps"), [(3, 20), (30, 13)])
def test_a_trace_begins_after_ten_steps_and_ends(tmp_path, num_traced, num_steps):
    one = StepTrace(tmp_path / "one", num_steps=1)
    take_steps(one, 20)
    trace = StepTrace(tmp_path / "trace", num_steps=num_traced)
    take_steps(trace, num_steps)
    trace.close()
    assert count_calls(tmp_path / "trace") == 3 * count_calls(tmp_path / "one") > 0


def test_nothing_is_traced_by_default(tmp_path):
    take_steps(StepTrace(tmp_path / "trace", num_steps=0), 12)
    with trace_all(tmp_path / "all", on=False):
        pass
    assert not any(tmp_path.iterdir())
    with trace_all(tmp_path / "all", on=True):
        jnp.zeros(()).block_until_ready()
    assert any((tmp_path / "all").rglob("*.xplane.pb"))
