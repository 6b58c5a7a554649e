"""Files of a workdir: earlier versions' are read, damaged ones are named."""

import json

import numpy as np
import pytest

from iterinf.errors import UserError
from iterinf.runtime.files import append_line, write_json
from iterinf.types import Selection
from iterinf.workdir import (
    Choice,
    append_sweep,
    find_refiner,
    keep_settings,
    read_choice,
    read_curve,
    read_followed,
    read_statistics,
    read_sweeps,
    write_choice,
)
from tests import tiny

SELECTION = Selection(0.5, 3, 0.25, {"bilateral_width": 3.0}, 0.125)
FOLLOWER = "dense_crf_after_dae_y"


def make_settings(**changes):
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    return json.loads(config.to_json())


def test_a_choice_is_read_as_it_was_written(tmp_path):
    choice = Choice(SELECTION, SELECTION._replace(step_size=1.0), None, "nll", 1.5)
    write_choice(tmp_path, "dae_y", choice, {"mean_iou": np.eye(2)})
    assert read_choice(tmp_path, "dae_y") == choice
    np.testing.assert_array_equal(read_curve(tmp_path, "dae_y")["mean_iou"], np.eye(2))


def test_choices_of_earlier_versions_are_read(tmp_path):
    """Their boundary F1 may be missing; a followed refiner was written otherwise."""
    old = {key: value for key, value in SELECTION._asdict().items() if "f1" not in key}
    write_json(
        find_refiner(tmp_path, FOLLOWER) / "selection.json",
        {
            "refined": old,
            "followed": old | {"name": "dae_y", "stop": 0.0},
            "initial_mean_iou": 0.5,
        },
    )
    expected = SELECTION._replace(boundary_f1=None)
    assert read_choice(tmp_path, FOLLOWER) == Choice(expected, followed=expected)
    write_choice(tmp_path, "dae_y", Choice(SELECTION), {})
    config = tiny.get_config()
    assert read_followed(tmp_path, config, FOLLOWER) == SELECTION
    write_choice(tmp_path, "dae_y", Choice(SELECTION._replace(mean_iou=0.3)), {})
    with pytest.raises(UserError, match=f"{FOLLOWER}/selection.json"):
        read_followed(tmp_path, config, FOLLOWER)


def test_an_option_that_a_config_lacks_stands_for_its_earlier_value(tmp_path):
    (tmp_path / "refiners" / "dae_y" / "checkpoints" / "4").mkdir(parents=True)
    before = make_settings()
    del before["refiner"]["dae_y"]["objective"]["self_conditioning"]
    before["refiner"]["dae_y"]["model"]["feature_dropout"] = 0.0
    keep_settings(tmp_path, before)
    keep_settings(tmp_path, make_settings())
    keep_settings(tmp_path, before)
    key = "refiner.dae_y.objective.self_conditioning"
    with pytest.raises(UserError, match=f"config.{key} = 0.0, not 0.6"):
        keep_settings(tmp_path, make_settings(**{key: 0.6}))
    before["refiner"]["dae_y"]["model"]["feature_dropout"] = 0.5
    write_json(tmp_path / "config.json", before)
    with pytest.raises(UserError, match="feature_dropout = 0.5, not 0.0"):
        keep_settings(tmp_path, make_settings())


def test_a_line_that_was_cut_off_is_dropped_from_a_sweep(tmp_path):
    append_sweep(tmp_path, "crf", {"a": 1})
    path = find_refiner(tmp_path, "crf") / "sweep.jsonl"
    path.write_text(path.read_text() + '{"a": 2, "b"')
    append_sweep(tmp_path, "crf", {"a": 3})
    assert read_sweeps(tmp_path, "crf") == [{"a": 1}, {"a": 3}]
    append_line(path, "{}")
    assert read_sweeps(tmp_path, "crf")[-1] == {}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_damaged_arrays_are_named(tmp_path, content):
    folder = find_refiner(tmp_path, "crf")
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"crf/curve.npz.*No such file"):
        read_curve(tmp_path, "crf")
    (folder / "curve.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*crf/curve.npz as arrays"):
        read_curve(tmp_path, "crf")


def test_a_damaged_config_is_named(tmp_path):
    assert read_statistics(tmp_path) is None
    (tmp_path / "refiners" / "dae_y" / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        keep_settings(tmp_path, make_settings())
