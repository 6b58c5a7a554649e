"""What the benchmarks time, count and go on after; their peers are not needed."""

import jax
import jax.numpy as jnp
import pytest

from iterinf.errors import UserError
from launch.benchmarks import __main__ as benchmarks
from launch.benchmarks.measure import Case, count_flops, measure, time_interleaved


def test_short_calls_are_timed_in_rows_until_the_limit():
    calls = []
    seconds = time_interleaved({"a": lambda: calls.append(1)}, 9, limit=0.0)
    assert len(seconds["a"]) == 3
    assert max(seconds["a"]) < 1e-3
    assert len(calls) > 30


def test_operations_of_a_product_are_counted():
    x = jnp.ones((8, 16))
    assert count_flops(jnp.dot, x, x.T) == 2 * 8 * 16 * 8


def test_a_case_without_peers_is_measured():
    case = Case("add", "3", jax.jit(jnp.add), (jnp.ones(3), jnp.ones(3)))
    result = measure(case, repeats=2, compile_time=False)
    assert result["seconds"] > 0
    assert result["repeats"] == 2
    assert "ratio" not in result
    assert "compile_cold" not in result


def test_a_failure_leaves_the_other_cases(monkeypatch, capsys):
    measured = []

    def measure_cases(name):
        if name == "sweep":
            raise ValueError("\nno\nmemory")
        measured.append(name)

    monkeypatch.setattr(benchmarks, "_measure_cases", measure_cases)
    with pytest.raises(SystemExit) as stopped:
        benchmarks._run(["", "dae_forward", "sweep", "startup"])
    assert stopped.value.code == 1
    assert measured == ["dae_forward", "startup"]
    assert capsys.readouterr().err == "sweep: ValueError: no memory\n"


def test_a_user_error_ends_them(monkeypatch):
    def measure_cases(name):
        raise UserError(f"no device for {name}")

    monkeypatch.setattr(benchmarks, "_measure_cases", measure_cases)
    with pytest.raises(SystemExit, match="no device for sweep"):
        benchmarks._run(["", "sweep", "startup"])
