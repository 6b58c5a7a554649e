"""What is read from a workdir against what the stages hold."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.errors import UserError
from iterinf.evaluation.label_maps import refine_labels
from iterinf.evaluation.selection import Selection
from iterinf.experiment.stages import Experiment
from iterinf.prediction.pipeline import read_pipeline
from iterinf.training.objectives import to_unit_range
from tests import tiny


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished workdir."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture(scope="module")
def experiment(finished, tmp_path_factory):
    """The finished experiment with its data, in a copy: it writes its config anew."""
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("experiment") / "run")
    return Experiment(tiny.get_config(), workdir)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def choose(folder, name, **choice):
    """Puts a choice on disk, as validation would."""
    path = folder / "refiners" / name / "selection.json"
    path.parent.mkdir(exist_ok=True)
    made = {"step_size": 1.0, "num_iterations": 3, "mean_iou": 0.5, "parameters": {}}
    path.write_text(json.dumps({"refined": made | choice}))


@pytest.mark.parametrize("name", [None, "dae_ytrue"])
def test_holds_what_the_stages_do(finished, experiment, name):
    pipeline = read_pipeline(finished, name)
    known = name or "dae_y"  # by default the last row
    networks = experiment.train_refiner(known)
    jax.tree.map(np.testing.assert_array_equal, pipeline.networks, networks)
    assert pipeline.segmenter == experiment.segmenter
    assert pipeline.refiner == experiment.create_refiner(known)
    path = finished / "refiners" / known / "selection.json"
    assert pipeline.selection == Selection(**json.loads(path.read_text())["refined"])
    title = {"dae_y": "DAE(y)", "dae_ytrue": "DAE(y_true)"}[known]
    assert pipeline.titles == ("FCN8", f"FCN8 + {title}")


def test_knows_the_data(finished, experiment):
    class_info = read_pipeline(finished).class_info
    assert class_info.classes == experiment.dataset.classes
    np.testing.assert_array_equal(class_info.colors, experiment.dataset.colors)
    assert class_info.size == experiment.dataset.train[0].label.shape
    assert class_info.outputs == {}


@pytest.mark.parametrize("stop", [0.0, 9.0])
def test_refines_as_the_table_does(folder, experiment, stop):
    choose(folder, "dae_y", step_size=0.5)
    pipeline = read_pipeline(folder, "dae_y")._replace(stop=stop)
    batch = experiment.dataset.test.stack([0, 1])
    maps = refine_labels(
        pipeline.segmenter,
        pipeline.refiner,
        pipeline.networks,
        batch,
        step_sizes=jnp.array([0.5]),
        num_iterations=3,
        stop=stop,
    )
    expected = np.asarray(maps)[:, 0].swapaxes(0, 1)  # p b h w

    @jax.jit
    def refine(networks, batch):
        candidate = pipeline.propose(networks, to_unit_range(batch))
        y, all_y = pipeline.refine(networks, candidate, observe=lambda y: y)
        return y, all_y

    y, all_y = refine(pipeline.networks, batch)
    np.testing.assert_array_equal(all_y.argmax(-1), expected[1:])
    np.testing.assert_array_equal(all_y[-1], y)
    moved = np.abs(all_y[1] - all_y[0]).max()
    assert moved == 0 if stop else moved > 0


def test_numbers_are_those_that_validation_chose(folder):
    names = ["dense_crf", "dae_y"]
    change_json(folder / "config.json", refiners=names)
    choose(folder, "dense_crf", parameters={"bilateral_width": 17.0})
    params = read_pipeline(folder, "dense_crf").networks["refiner"]["params"]
    assert params["bilateral_width"] == 17.0
    assert params["spatial_width"] == 3.0  # of the config


def test_what_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="'crf'.* dae_ytrue, dae_y"):
        read_pipeline(folder, "crf")
    with pytest.raises(UserError, match="none is no workdir"):
        read_pipeline(folder / "none")
    (folder / "refiners" / "dae_ytrue" / "selection.json").unlink()
    with pytest.raises(UserError, match="dae_ytrue/selection.json .*--mode"):
        read_pipeline(folder, "dae_ytrue")
    shutil.rmtree(folder / "segmenter" / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint in .*segmenter"):
        read_pipeline(folder)


def test_files_of_another_kind_are_refused(folder):
    data = json.loads((folder / "data.json").read_text())
    del data["colors"]
    (folder / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="data.json .*earlier version"):
        read_pipeline(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json .*JSON"):
        read_pipeline(folder)


def test_a_checkpoint_of_another_network_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["refiner"]["dae_y"]["model"]["widths"] = [4, 6, 9]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="another model"):
        read_pipeline(folder, "dae_y")


def test_computes_in_the_dtype_of_the_choices(folder):
    evaluation = json.loads((folder / "config.json").read_text())["evaluation"]
    change_json(
        folder / "config.json", evaluation=evaluation | {"sweep_dtype": "bfloat16"}
    )
    pipeline = read_pipeline(folder)
    assert pipeline.segmenter.dtype == pipeline.refiner.dtype == jnp.bfloat16


def test_removed_options_of_an_earlier_version_are_read_at_their_defaults(folder):
    expected = read_pipeline(folder).refiner
    refiners = json.loads((folder / "config.json").read_text())["refiner"]
    refiners["dae_y"]["model"]["feature_dropout"] = 0.0
    change_json(folder / "config.json", refiner=refiners)
    assert read_pipeline(folder).refiner == expected
    refiners["dae_y"]["model"]["feature_dropout"] = 0.5
    change_json(folder / "config.json", refiner=refiners)
    with pytest.raises(UserError, match="feature_dropout"):
        read_pipeline(folder)


def test_labels_that_depend_on_a_batch_are_refused(folder):
    segmenter = json.loads((folder / "config.json").read_text())["segmenter"]
    segmenter |= {"name": "fc_densenet56", "model": {"statistics": "batch"}}
    change_json(folder / "config.json", segmenter=segmenter)
    with pytest.raises(UserError, match="statistics of .* is 'batch'"):
        read_pipeline(folder)
