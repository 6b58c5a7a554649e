"""What bars show, and when."""

import jax
import jax.numpy as jnp
import pytest

from iterinf.runtime.bars import StepBar, create_bar


@pytest.mark.parametrize("count", [2, 6])
def test_a_short_training_shows_its_end(capsys, count):
    """Also where little is printed, as into a file, and steps take no time."""
    bar = StepBar("training", total=6, initial=0)
    for step in range(count):
        bar.add(jnp.asarray(step))
        if step % 2:
            bar.wait()
            bar.end_epoch(100.0, loss="0.5")
    bar.close()
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert f"{count}/6" in last
    assert "loss=0.5" in last


def test_the_rate_leaves_out_compilation_and_the_first_validation():
    bar = StepBar("training", total=6, initial=0)
    bar._opened -= 50
    for seconds in (50, 150, 150):
        bar.add(jnp.asarray(0))
        assert -seconds <= bar._bar.format_dict["elapsed"] < 10 - seconds
        bar.end_epoch(100.0)
    bar.close()


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_process_alone_shows_bars(monkeypatch, capsys, index):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    create_bar("work", 3, "image").close()
    bar = StepBar("training", total=6, initial=0)
    bar.add(jnp.asarray(0))
    bar.end_epoch(1.0)
    bar.close()
    said = capsys.readouterr().err
    assert ("training" in said) == ("work" in said) == (index == 0)
