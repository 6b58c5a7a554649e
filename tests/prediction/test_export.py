"""Exported functions and weights are those of the workdir, and need JAX alone."""

import functools
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file

from iterinf.errors import UserError
from iterinf.evaluation.selection import Selection
from iterinf.experiment.modes import run
from iterinf.experiment.stages import Experiment
from iterinf.prediction import export
from iterinf.prediction.pipeline import (
    ClassInfo,
    Pipeline,
    describe_images,
    read_pipeline,
)
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.segmenters.precomputed import Precomputed
from iterinf.types import Batch
from tests import tiny
from tests.fixtures.exports import call, take_refiner

SHAPES = [(1, 32, 48), (3, 45, 61)]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A finished workdir in which DAE(y) has been exported, without its data."""
    workdir = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(finished, workdir)
    config = tiny.get_config()
    config.dataset.name = "none"
    config.export.refiner = "dae_y"
    run(config, workdir, "export", "")
    return workdir


def make_images(shape):
    return np.random.default_rng(0).random((*shape, 3), np.float32)


def refine(pipeline, shape):
    """What the pipeline makes of images: a candidate and its refinement."""
    images = jnp.asarray(make_images(shape))

    @jax.jit
    def compute(networks):
        outputs = {
            name: jnp.full(x.shape, 1 / x.shape[-1])
            for name, x in describe_images(pipeline.class_info, shape).outputs.items()
        }
        labels = jnp.zeros(shape, jnp.int32)
        candidate = pipeline.propose(networks, Batch(images, labels, outputs))
        return candidate, pipeline.refine(networks, candidate).y

    return compute(pipeline.networks)


@pytest.mark.parametrize("shape", SHAPES)
def test_functions_equal_the_pipeline(exported, shape):
    pipeline, folder = read_pipeline(exported, "dae_y"), exported / "export" / "dae_y"
    weights = load_file(folder / "weights.safetensors")
    candidate, expected = refine(pipeline, shape)
    assert np.abs(expected - candidate.y).max() > 1e-3
    content = (folder / "segment_and_refine.jax").read_bytes()
    y = call(content, weights, candidate.image)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    content = (folder / "refine.jax").read_bytes()
    features = {"pool2": candidate.features["pool2"]}
    own = take_refiner(weights)
    y = call(content, own, candidate.y, features, candidate.image)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_stop_rule_is_exported(exported):
    pipeline = read_pipeline(exported, "dae_y")._replace(stop=9.0)
    program = export.export_refinement(pipeline)
    assert program.least == 32
    candidate, expected = refine(pipeline, SHAPES[1])
    own = take_refiner(export.flatten_weights(pipeline))
    features = {"pool2": candidate.features["pool2"]}
    y = call(program.content, own, candidate.y, features, candidate.image)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_weights_are_those_of_the_workdir(exported):
    pipeline = read_pipeline(exported, "dae_y")
    path = exported / "export" / "dae_y" / "weights.safetensors"
    found, expected = load_file(path), flatten_dict(pipeline.networks, sep="/")
    assert found.keys() == expected.keys()
    assert "segmenter/params/conv1_1/kernel" in found
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    selection = Selection(**json.loads(metadata["selection"]))
    assert selection == pipeline.selection
    assert json.loads(metadata["config"])["segmenter"]["name"] == "fcn8"


def test_the_code_of_the_card_runs_without_iterinf(exported, tmp_path):
    folder = exported / "export" / "dae_y"
    card = (folder / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    candidate, expected = refine(read_pipeline(exported, "dae_y"), SHAPES[0])
    np.save(tmp_path / "images.npy", candidate.image)
    absent = ("iterinf", "flax", "ml_collections", "safetensors", "optax", "orbax")
    blocks = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    more = f"""
assert y.shape == (1, 32, 48, 11), y.shape
images = np.load({str(tmp_path / "images.npy")!r})
np.save({str(tmp_path / "y.npy")!r}, segment_and_refine(weights, images))
"""
    command = [sys.executable, "-c", blocks + code + more]
    subprocess.run(command, cwd=folder, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)


def test_the_card_says_what_the_table_does(exported):
    card = (exported / "export" / "dae_y" / "README.md").read_text()
    table = (exported / "results" / "table.md").read_text().splitlines()
    rows = [line for line in card.splitlines() if line in table[2:9]]
    assert rows == [table[2], *table[6:9]]  # of FCN8 and of DAE(y)
    assert card.startswith("# FCN8 + DAE(y)\n")
    assert "| 3 | road | 128, 64, 128 |" in card
    choice = read_pipeline(exported, "dae_y").selection
    assert f"step size {choice.step_size:g}, {choice.num_iterations} iter" in card
    for part in (
        "- command: `the command`",
        "- seed: `0`",
        "- commit: `",
        "romero2017",
    ):
        assert part in card


def test_training_starts_from_exported_weights(exported, tmp_path):
    """It normalises as they do, still when their file is gone, and never otherwise."""
    path = tmp_path / "weights.safetensors"
    shutil.copy(exported / "export" / "dae_y" / "weights.safetensors", path)
    config = tiny.get_config()
    config.segmenter.init_from = str(path)
    config.segmenter.training.optimizer.learning_rate = 0.0
    config.segmenter.training.num_epochs = 1
    other = config.copy_and_resolve_references()
    other.segmenter.model.input_std = (9.0, 9.0, 9.0)
    with pytest.raises(UserError, match="input_std is"):
        run(other, tmp_path / "other", "train_segmenter", "")
    run(config, tmp_path / "run", "train_segmenter", "")
    path.unlink()
    experiment = Experiment(config, tmp_path / "run")
    first = Experiment(tiny.get_config(), exported)
    assert experiment.segmenter == first.segmenter
    jax.tree.map(
        np.testing.assert_array_equal,
        experiment.train_segmenter(),
        first.train_segmenter(),
    )


def create_pipeline(segmenter, refiner, **options):
    """Networks of random numbers."""
    outputs = {}
    if isinstance(segmenter, Precomputed):
        outputs = {"probabilities": 5, "pool1": 3}
    offset = segmenter.feature_offset
    improver = create_refiner(refiner, num_classes=5, feature_offset=offset, **options)
    colors = np.zeros((6, 3), np.uint8)
    class_info = ClassInfo(tuple("abcde"), colors, (32, 48), outputs)
    pipeline = Pipeline(
        segmenter,
        improver,
        {},
        Selection(0.5, 2, 0.0, {}),
        0.0,
        class_info,
        ("A", "A + B"),
    )

    def init(batch):
        key = jax.random.key(0)
        variables = segmenter.init(key, batch.image, **batch.outputs)
        candidate = pipeline.propose({"segmenter": variables}, batch)
        return {"segmenter": variables, "refiner": improver.init(key, candidate)}

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, describe_images(class_info))
    networks = jax.tree.map(lambda x: 0.3 * rng.random(x.shape, np.float32), shapes)
    return pipeline._replace(networks=networks)


DAE = {"widths": (4, 6, 8), "features": ("pool1", "input"), "skip_connections": True}
TIED = {"switches": "tied", "decoder": "transposed", "start_as_identity": True}


@pytest.mark.parametrize(
    ("refiner", "options"),
    [("dae", DAE), ("dae", DAE | TIED), ("context_module", {"use_image": True})],
)
def test_refiners_take_any_size(refiner, options):
    pipeline = create_pipeline(Precomputed(num_classes=5), refiner, **options)
    weights = export.flatten_weights(pipeline)
    program = export.export_refinement(pipeline)
    candidate, expected = refine(pipeline, (2, 39, 50))
    names = set(options.get("features", ())) - {"input"}
    features = {name: candidate.features[name] for name in names}
    own = take_refiner(weights)
    y = call(program.content, own, candidate.y, features, candidate.image)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("refiner", ["dense_crf", "crf_rnn"])
def test_refiners_on_the_lattice_take_any_batch(refiner):
    pipeline = create_pipeline(Precomputed(num_classes=5), refiner)
    program = export.export_refinement(pipeline)
    assert program.least is None
    y = jax.export.deserialize(program.content).out_avals[0]
    assert (str(y.shape[0]), *y.shape[1:]) == ("b", 32, 48, 5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn8", {"width": 1 / 32}),
        ("fc_densenet56", {"blocks": (1, 1), "bottleneck": 1, "growth_rate": 2}),
    ],
)
def test_segmenters_take_any_size(name, options):
    segmenter = create_segmenter(name, num_classes=5, **options)
    widths = {"widths": (2, 2, 2), "features": ("pool2",)}
    pipeline = create_pipeline(segmenter, "dae", **widths)
    program = export.export_pipeline(pipeline)
    assert program.least == 32
    exported = jax.export.deserialize(program.content)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert list(map(str, exported.out_avals[0].shape)) == ["b", "h", "w", "5"]


def test_what_is_missing_is_named(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results" / "table.json").unlink()
    export_run = functools.partial(run, tiny.get_config(), mode="export", command="")
    with pytest.raises(UserError, match="results .*--mode=report"):
        export_run(workdir=tmp_path / "run")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="flatbuffers"):
        export_run(workdir=tmp_path / "run")
