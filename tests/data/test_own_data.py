"""Data sets of two classes and of 150, from the folder to the report."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.config import list_trained
from iterinf.data.image_io import encode_png, read_label
from iterinf.evaluation.sweep import count_refinements
from iterinf.evaluation.tally import Spec
from iterinf.experiment.modes import run
from iterinf.refiners import create_refiner
from iterinf.refiners.functional import dense_crf
from iterinf.report.figures import plot_segmentations
from iterinf.report.rows import make_row
from iterinf.report.table import format_console_table, write_table
from iterinf.runtime.files import read_arrays
from iterinf.segmenters import create_segmenter
from iterinf.training.objectives import propose
from iterinf.types import Batch
from tests import tiny
from tests.tallies import make_tally

REFINERS = ("dense_crf", "context_module", "crf_rnn", "dae_ytrue", "dae_y")
MANY = 150


def write_circles(root, rng):
    """Bright circles on noise, 32 x 48, their rims void."""
    rows, columns = np.mgrid[:32, :48]
    for split, count in (("train", 8), ("validation", 3), ("test", 4)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            row, column, radius = rng.uniform((8, 8, 5), (24, 40, 9))
            distance = np.hypot(rows - row, columns - column) - radius
            label = np.where(distance < 0, 1, 0)
            label[np.abs(distance) < 0.7] = 255
            image = rng.integers(0, 120, (32, 48, 3)) + 100 * (distance < 0)[..., None]
            for kind, array in (("images", image), ("labels", label)):
                path = root / split / kind / f"{index}.png"
                path.write_bytes(encode_png(array.astype(np.uint8)))
    classes = [
        {"name": "background", "color": [30, 30, 60]},
        {"name": "circle", "color": [250, 200, 0]},
    ]
    legend = {"classes": classes, "void_id": 255, "void_color": [0, 0, 0]}
    (root / "classes.json").write_text(json.dumps(legend))


def make_config(root):
    config = tiny.get_config()
    config.dataset = {"name": "folder", "options": {"path": str(root)}}
    config.segmenter.class_weights = "median_frequency"
    config.refiners = REFINERS
    for network in list_trained(config).values():
        network.training.num_epochs = 1
    config.refiner.dense_crf.selection.parameters.update(
        bilateral_width=(20.0,), bilateral_weight=(3.0,)
    )
    return config


@pytest.mark.slow
def test_two_classes_go_through_the_whole_experiment(rng, tmp_path, capsys):
    write_circles(tmp_path / "circles", rng)
    config, workdir = make_config(tmp_path / "circles"), tmp_path / "run"
    run(config, workdir, "check_data", "")
    assert "circles, 2 classes: no problems found" in capsys.readouterr().out
    assert (workdir / "data" / "contact_sheet.png").exists()
    run(config, workdir, "run", "the command")
    table = json.loads((workdir / "results" / "table.json").read_text())
    assert table["classes"] == ["background", "circle"]
    assert len(table["rows"]) == 1 + 3 + 2 * 3
    plain = read_arrays(workdir / "segmenter" / "test.npz")["counts"]
    assert plain.shape == (4, 2, 2)
    labels = [
        read_label(tmp_path / "circles" / "test" / "labels" / f"{i}.png")
        for i in range(4)
    ]
    assert plain.sum() == sum((label < 2).sum() for label in labels)
    figures = {path.name for path in (workdir / "results" / "figures").iterdir()}
    iterating = ("dense_crf", "crf_rnn", "dae_y", "dae_ytrue")
    assert figures == {"figure3.png"} | {f"figure4_{name}.png" for name in iterating}


def draw_many(rng):
    """Two images of 16 x 24 whose labels are of 150 classes, with void."""
    image = rng.integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    return Batch(image, rng.integers(0, MANY + 1, (2, 16, 24)).astype(np.uint8))


@pytest.mark.parametrize("name", ["fcn8", "fc_densenet103"])
def test_segmenters_propose_many_classes(rng, name):
    options = {"fcn8": {"width": 1 / 32}}.get(name, {"blocks": (1,), "bottleneck": 1})
    segmenter = create_segmenter(name, num_classes=MANY, **options)
    images = jnp.asarray(draw_many(rng).image / np.float32(255))
    variables = jax.jit(segmenter.init)(jax.random.key(0), images)
    y = jax.jit(functools.partial(propose, segmenter))(variables, Batch(images, None)).y
    assert y.shape == (2, 16, 24, MANY)
    np.testing.assert_allclose(y.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["context_module", "crf_rnn", "dae", "dense_crf"])
def test_refiners_sweep_over_many_classes(rng, name):
    options = {"dae": {"widths": (4, 6), "features": ("pool1",)}}.get(name, {})
    options |= {"exact": True} if "crf" in name else {}
    segmenter = create_segmenter("fcn8", num_classes=MANY, width=1 / 32, padding="same")
    refiner = create_refiner(name, num_classes=MANY, **options)
    split = draw_many(rng)
    batch = Batch(jnp.asarray(split.image / np.float32(255)), None)
    variables = jax.jit(segmenter.init)(jax.random.key(0), batch.image)
    candidate = jax.eval_shape(functools.partial(propose, segmenter), variables, batch)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), candidate)
    networks = {
        "segmenter": variables,
        "refiner": jax.jit(refiner.init)(jax.random.key(1), zeros),
    }
    counts = count_refinements(
        segmenter,
        refiner,
        networks,
        split,
        step_sizes=(1.0,),
        num_iterations=1,
        spec=Spec(MANY, 0.1),
        batch_size=2,
    )
    assert counts.refined.confusion.shape == (2, 1, 1, MANY, MANY)
    labelled = (split.label < MANY).sum(axis=(1, 2))
    for tally in counts:
        pixels = tally.confusion.reshape(2, -1).sum(axis=1)
        np.testing.assert_array_equal(pixels, labelled)


@pytest.mark.slow
def test_the_lattice_filters_many_classes(rng):
    y = rng.dirichlet(np.ones(MANY), (16, 24)).astype(np.float32)
    image = draw_many(rng).image[0]
    refined = dense_crf(y, image, 1)
    exact = dense_crf(y, image, 1, exact=True)
    np.testing.assert_allclose(refined.sum(axis=-1), 1, atol=1e-4)
    assert np.mean(refined.argmax(-1) == exact.argmax(-1)) > 0.95


def test_table_and_figures_stay_readable_with_many_classes(rng, tmp_path):
    classes = [f"class {i}" for i in range(MANY)]
    colors = rng.integers(0, 256, (MANY + 1, 3)).astype(np.uint8)
    split = draw_many(rng)
    labels = np.minimum(split.label, 49)  # 49 is most of the picture
    labels[0] = MANY
    counts = make_tally(rng.integers(0, 5, (2, MANY, MANY)))
    row = make_row("FCN8", counts, counts, (0, 1))
    write_table([row], classes, tmp_path, [], {})
    assert len(format_console_table([row], classes).splitlines()) == 4 + MANY
    predictions = dict.fromkeys(("FCN8", "CRF"), list(np.minimum(labels, MANY - 1)))
    figure = plot_segmentations(
        list(split.image), list(labels), predictions, classes, colors
    )
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "class 49" in entries
    others = ["void", "120 other classes", "corrected", "degraded"]
    assert entries[-4:] == others
    assert len(entries) == 34
