"""The competitors chosen and evaluated like a DAE, at tiny size."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.errors import UserError
from iterinf.experiment import choice as protocol
from iterinf.experiment.modes import run
from iterinf.experiment.stages import Experiment
from iterinf.runtime.files import read_arrays, read_lines
from iterinf.training.objectives import propose, to_unit_range
from tests import tiny
from tests.tallies import make_tally

pytestmark = pytest.mark.slow


def get_config():
    config = tiny.get_config()
    config.refiners = ("dense_crf", "crf_rnn")
    config.refiner.dense_crf.model.exact = False
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a finished run."""
    folder = tmp_path_factory.mktemp("competitors")
    run(get_config(), folder, "run", "the command")
    return folder


def test_each_has_a_row_and_no_controls(workdir):
    document = json.loads((workdir / "results" / "table.json").read_text())
    names = ["FCN8", "FCN8 + CRF", "FCN8 + CRF-RNN"]
    assert [row["model"] for row in document["rows"]] == names
    assert [row["step_size"] for row in document["rows"]] == [None, 1, 1]
    gains = [note for note in document["notes"] if "the segmenter alone" in note]
    assert len(gains) == 2
    described = document["provenance"]["CRF"]
    assert described.startswith("not trained here; bilateral_weight ")
    figures = {path.name for path in (workdir / "results" / "figures").iterdir()}
    assert figures == {
        "figure3.png",
        "figure4_dense_crf.png",
        "figure4_crf_rnn.png",
    }


def test_the_best_of_the_grid_is_chosen(workdir):
    folder = workdir / "refiners" / "dense_crf"
    sweeps = [json.loads(line) for line in read_lines(folder / "sweep.jsonl")]
    tried = {
        (
            sweep["parameters"]["bilateral_width"],
            sweep["parameters"]["bilateral_weight"],
        )
        for sweep in sweeps
    }
    assert tried == {(3, 1), (3, 3), (20, 1), (20, 3)}
    best = max(sweeps, key=lambda sweep: max(sweep["mean_iou"][0]))
    chosen = json.loads((folder / "selection.json").read_text())["refined"]
    assert chosen["parameters"] == best["parameters"]
    assert chosen["mean_iou"] == max(best["mean_iou"][0])
    curve = read_arrays(folder / "curve.npz")
    np.testing.assert_array_equal(curve["mean_iou"], best["mean_iou"])


def test_test_runs_with_the_numbers_chosen(workdir):
    """The same by hand: `iterinf.dense_crf` of the segmenter's softmax."""
    experiment = Experiment(get_config(), workdir)
    folder = workdir / "refiners" / "dense_crf"
    chosen = json.loads((folder / "selection.json").read_text())["refined"]
    batch = to_unit_range(experiment.dataset.test.stack())
    batch = batch._replace(image=jnp.asarray(batch.image))
    y = jax.jit(functools.partial(propose, experiment.segmenter))(
        experiment.train_segmenter(), batch
    ).y
    refined = iterinf.dense_crf(
        y, batch.image, chosen["num_iterations"], **chosen["parameters"]
    )
    labels = np.asarray(refined).argmax(axis=-1)
    found = read_arrays(folder / "test.npz")["refined"]
    for i in range(len(labels)):
        expected = iterinf.confusion_matrix(
            jnp.asarray(batch.label[i]), jnp.asarray(labels[i]), 11
        )
        assert np.abs(found[i] - np.asarray(expected)).sum() <= 4  # near ties


def test_of_equal_values_those_with_fewer_iterations_are_chosen(
    workdir, tmp_path, monkeypatch
):
    curves = {1.0: [[0.1, 0.2, 0.3]], 2.0: [[0.1, 0.3, 0.2]], 3.0: [[0.1, 0.3, 0.3]]}
    sweeps = [
        protocol.Sweep({"bilateral_weight": weight}, 0.1, 0.1, curve, curve, 1.0, 0)
        for weight, curve in curves.items()
    ]
    monkeypatch.setattr(protocol, "_sweep_parameters", lambda *_: sweeps)
    experiment = Experiment(get_config(), workdir)
    experiment.train_refiner("dense_crf")  # there, before the workdir is another
    monkeypatch.setattr(experiment, "workdir", tmp_path)
    (tmp_path / "refiners" / "dense_crf").mkdir(parents=True)
    choice = protocol.choose(experiment, "dense_crf")
    assert choice == (1.0, 2, 0.3, {"bilateral_weight": 2.0}, 0.3)


def test_an_interrupted_grid_goes_on(workdir, monkeypatch):
    folder = workdir / "refiners" / "dense_crf"
    path = folder / "sweep.jsonl"
    lines, kept = read_lines(path), (folder / "selection.json").read_text()
    path.write_text("".join(f"{line}\n" for line in lines[:3]))
    (folder / "selection.json").unlink()
    titles = []
    count = protocol.count_refinements

    def count_and_note(*args, **options):
        titles.append(options["title"])
        return count(*args, **options)

    monkeypatch.setattr(protocol, "count_refinements", count_and_note)
    run(get_config(), workdir, "sweep", "again")
    assert titles == ["sweep 4 of 4 of CRF"]
    again = json.loads((folder / "selection.json").read_text())
    assert again["refined"] == json.loads(kept)["refined"]
    config = get_config()
    config.refiner.dense_crf.selection.step_sizes = (0.5,)
    with pytest.raises(UserError, match="dense_crf.selection.step_sizes = "):
        run(config, workdir, "sweep", "")
    (folder / "selection.json").unlink()
    titles.clear()
    run(config, workdir, "sweep", "")  # nothing of the other grid is of use
    assert titles == [f"sweep {i} of 4 of CRF" for i in (1, 2, 3, 4)]


def test_a_number_that_a_refiner_lacks_is_named_before_training(tmp_path):
    config = get_config()
    config.refiner.crf_rnn.selection.parameters = {"temperature": (1.0,)}
    with pytest.raises(
        UserError, match="'temperature'; .* bilateral_width, color_width, spatial_width"
    ):
        run(config, tmp_path, "run", "")
    assert not (tmp_path / "segmenter").exists()


def test_all_rows_are_counted_in_one_dtype(tmp_path, monkeypatch):
    config = get_config()
    config.evaluation.sweep_dtype = "bfloat16"
    experiment = Experiment(config, tmp_path)
    experiment._segmenter_variables = {}
    used = []

    def count(segmenter, *_, **__):
        used.append(segmenter.dtype)
        return make_tally(np.zeros((1, 2, 2), int))

    monkeypatch.setattr(protocol, "count_predictions", count)
    protocol.evaluate_segmenter(experiment)
    assert used == [jnp.bfloat16]
