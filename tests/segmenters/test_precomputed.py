"""The network that ran elsewhere, and an experiment on its output."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import iterinf
from configs import base
from iterinf import create_segmenter
from iterinf.data import create_dataset
from iterinf.data.external import add_outputs
from iterinf.errors import UserError
from iterinf.evaluation.label_maps import refine_labels
from iterinf.experiment.modes import run
from iterinf.experiment.stages import Experiment
from iterinf.prediction.folder import predict_files
from iterinf.prediction.pipeline import read_pipeline
from iterinf.runtime.files import read_arrays
from iterinf.training.objectives import propose, to_unit_range
from tests import tiny

pytestmark = pytest.mark.slow


def test_hands_on_what_it_is_given(rng):
    network = create_segmenter("precomputed", num_classes=3)
    images = jnp.asarray(rng.uniform(size=(2, 4, 6, 3)), jnp.float32)
    y = jnp.asarray(rng.dirichlet(np.ones(3), (2, 4, 6)), jnp.float16)
    pool1 = jnp.asarray(rng.normal(size=(2, 2, 3, 5)), jnp.float16)
    assert network.init(jax.random.key(0), images, probabilities=y) == {}
    logits, features = network.apply({}, images, probabilities=y, pool1=pool1)
    assert logits.dtype == features["pool1"].dtype == jnp.float32
    np.testing.assert_allclose(jax.nn.softmax(logits), y, atol=1e-3)
    np.testing.assert_array_equal(features["pool1"], pool1.astype(jnp.float32))
    np.testing.assert_array_equal(features["input"], images)


def test_certain_pixels_stay_finite():
    network = create_segmenter("precomputed", num_classes=2)
    y = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    logits, _ = network.apply({}, jnp.zeros((1, 1, 1, 3)), probabilities=y)
    np.testing.assert_allclose(jax.nn.softmax(logits), y, atol=1e-6)
    assert np.isfinite(logits).all()


@pytest.fixture(scope="module")
def workdirs(finished, tmp_path_factory):
    """A trained FCN-8's experiment, and one on what that FCN-8 has written."""
    folder = tmp_path_factory.mktemp("precomputed")
    shutil.copytree(finished, folder / "whole")
    config = tiny.get_config()
    config.refiners = ("dae_y",)
    config.segmenter = base.create_precomputed()
    config.segmenter.outputs = str(folder / "outputs")
    _write_outputs(folder / "whole", folder / "outputs")
    run(config, folder / "alone", "run", "test")
    return folder / "whole", folder / "alone", config


def _write_outputs(workdir, folder):
    """What the documentation's recipe does, in JAX."""
    config = tiny.get_config()
    config.refiners = ("dae_y",)
    experiment = Experiment(config, workdir)
    compute = jax.jit(functools.partial(propose, experiment.segmenter))
    for name in ("train", "validation", "test"):
        (folder / name).mkdir(parents=True)
        split = getattr(experiment.dataset, name)
        for i, stem in enumerate(split.names):
            batch = to_unit_range(jax.tree.map(jnp.asarray, split.stack([i])))
            y, h, _ = compute(experiment.train_segmenter(), batch)
            path = folder / name / f"{stem}.npz"
            np.savez(path, probabilities=y[0], pool2=h["pool2"][0])


def test_the_plain_row_is_that_of_the_network(workdirs):
    """Written and read again, y is counted as before, up to rounding."""
    whole, alone, _ = workdirs
    counts = [
        read_arrays(folder / "segmenter" / "test.npz")["counts"]
        for folder in (whole, alone)
    ]
    assert np.abs(counts[0] - counts[1]).sum() <= 0.001 * counts[0].sum()
    summary = json.loads((alone / "segmenter" / "summary.json").read_text())
    assert set(summary) == {"mean_iou_on_validation"}


def test_the_refiner_is_trained_on_it(workdirs):
    """On whole frames' outputs, cropped, where `whole` has those of the crops."""
    whole, alone, _ = workdirs
    rows = json.loads((alone / "results" / "table.json").read_text())["rows"]
    assert [row["model"] for row in rows] == [
        "network",
        "network + DAE(y), one reconstruction",
        "network + DAE(y), one damped step",
        "network + DAE(y)",
    ]
    losses = [
        json.loads(line)["validation/loss"]
        for line in (alone / "refiners/dae_y/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[1] < losses[0]
    assert (alone / "results" / "figures" / "figure3.png").stat().st_size > 10_000


def test_the_report_says_that_it_was_not_trained_here(workdirs):
    _, alone, _ = workdirs
    assert "not trained here; mean IoU" in (alone / "results" / "table.md").read_text()


def test_crops_hold_whole_cells_of_the_features(workdirs, tmp_path):
    *_, config = workdirs
    config = config.copy_and_resolve_references()
    config.refiner.dae_y.training.crop_size = (32, 30)
    with pytest.raises(UserError, match=r"dae_y.training.crop_size .* multiples of 4"):
        run(config, tmp_path, "run", "test")


def test_pictures_are_predicted_with_their_outputs(workdirs, tmp_path):
    """As those that the experiment read; without them, the sentence says what to do."""
    _, alone, config = workdirs
    experiment = Experiment(config, alone)
    record = experiment.dataset.test[0]
    predictor = iterinf.load(alone)
    found = predictor.predict(record.image, **record.outputs)
    y = record.outputs["probabilities"]
    np.testing.assert_allclose(found.initial_y, y, atol=1e-5)
    pipeline = read_pipeline(alone)
    expected = refine_labels(
        experiment.segmenter,
        experiment.create_refiner("dae_y"),
        experiment.train_refiner("dae_y"),
        experiment.dataset.test.stack([0]),
        step_sizes=jnp.array([pipeline.selection.step_size]),
        num_iterations=pipeline.selection.num_iterations,
    )[:, 0, -1]
    np.testing.assert_array_equal(found.labels, expected[0])
    with pytest.raises(UserError, match="pool2 of the image has 0 channels"):
        predictor.predict(record.image, probabilities=y)
    Image.fromarray(record.image).save(tmp_path / "one.png")
    options = {"images": str(tmp_path), "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match="config.predict.probabilities"):
        predict_files(alone, **options)


def test_features_at_the_size_of_the_picture(workdirs, rng):
    """A picture of twice the size, with outputs of twice the size."""
    predictor = iterinf.load(workdirs[1])
    y = rng.dirichlet(np.ones(11), (8, 12)).astype(np.float32)
    pool2 = rng.normal(size=(8, 12, predictor.outputs["pool2"])).astype(np.float32)
    image = np.zeros((64, 96, 3), np.uint8)
    large, small = (
        predictor.predict(
            image,
            probabilities=y.repeat(4 * factor, 0).repeat(4 * factor, 1),
            pool2=pool2.repeat(factor, 0).repeat(factor, 1),
        )
        for factor in (2, 1)
    )
    np.testing.assert_allclose(large.y, small.y, atol=1e-5)


def test_other_outputs_are_other_data(workdirs, rng):
    _, alone, config = workdirs
    path = sorted((alone.parent / "outputs" / "train").iterdir())[0]
    before = path.read_bytes()
    arrays = dict(np.load(path))
    arrays["pool2"] = arrays["pool2"] + 1
    np.savez(path, **arrays)
    try:
        with pytest.raises(UserError, match="other data"):
            run(config, alone, "run", "test")
    finally:
        path.write_bytes(before)


def test_the_recipe_of_the_documentation(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    text = (pathlib.Path(__file__).parents[2] / "docs/precomputed.md").read_text()
    recipe = text.split("```python\n")[1].split("```")[0]
    options = {"height": 32, "width": 48, "num_train": 2}
    options |= {"num_validation": 1, "num_test": 1}
    recipe = recipe.replace('"camvid", path="data/camvid"', '"streets", **options')
    model = torch.nn.Conv2d(3, 11, 3, padding=1)
    monkeypatch.chdir(tmp_path)
    exec(recipe, {"model": model, "normalise": lambda x: x - 0.5, "options": options})
    dataset = add_outputs(create_dataset("streets", **options), pathlib.Path("outputs"))
    record = dataset.train[1]
    x = torch.tensor(record.image / np.float32(255) - 0.5).permute(2, 0, 1)[None]
    expected = model(x).softmax(1).detach().numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(record.outputs["probabilities"], expected, atol=1e-3)


def test_a_feature_that_no_file_holds_shows_before_anything_is_trained(
    workdirs, tmp_path
):
    *_, config = workdirs
    config = config.copy_and_resolve_references()
    config.refiners = ("dae_ytrue", "dae_y")
    config.refiner.dae_y.model.features = ("pool1",)
    with pytest.raises(UserError, match="no feature 'pool1'; .* gives: input, pool2"):
        run(config, tmp_path, "run", "test")
    assert not (tmp_path / "refiners").exists()
