"""A CRF after a DAE, against the two by hand; its row, its report, its pipeline."""

import base64
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import iterinf
from iterinf.errors import UserError
from iterinf.evaluation.chain import Chain, Loop
from iterinf.evaluation.label_maps import segment
from iterinf.experiment import choice as protocol
from iterinf.experiment.modes import run
from iterinf.experiment.stages import Experiment
from iterinf.inference import refine
from iterinf.prediction.pipeline import read_pipeline
from iterinf.report.trajectories import unpack_maps
from iterinf.runtime.files import read_arrays, read_lines
from iterinf.segmenters.precomputed import Precomputed
from iterinf.training.objectives import propose, to_unit_range
from iterinf.workdir import read_choice
from tests import tiny
from tests.fixtures.exports import call, take_refiner
from tests.fixtures.linear import Refiner, Segmenter, make_problem
from tests.fixtures.pages import read_document

pytestmark = pytest.mark.slow

NAME, TITLE = "dense_crf_after_dae_y", "FCN8 + DAE(y), then CRF"


def test_proposes_what_the_loop_has_reached():
    networks, split = make_problem()
    batch = to_unit_range(jax.tree.map(jnp.asarray, split))
    chain = Chain(Segmenter(), Loop(Refiner(), 0.3, 4, 0.0))
    assert hash(chain) == hash(Chain(Segmenter(), Loop(Refiner(), 0.3, 4, 0.0)))
    first = propose(chain.segmenter, networks["segmenter"], batch)
    found = propose(chain, networks, batch)
    refined = chain.loop.refine(networks["refiner"], first).y
    np.testing.assert_allclose(found.y, refined, atol=1e-6)
    assert np.abs(found.y - first.y).max() > 0.01
    jax.tree.map(np.testing.assert_array_equal, found.features, first.features)


def test_starts_from_another_networks_outputs(rng):
    networks, split = make_problem()
    batch = to_unit_range(jax.tree.map(jnp.asarray, split))
    y = rng.dirichlet(np.ones(3), batch.label.shape).astype(np.float32)
    batch = batch._replace(outputs={"probabilities": jnp.asarray(y)})
    chain = Chain(Precomputed(3), Loop(Refiner(), 0.3, 4, 0.0))
    first = propose(chain.segmenter, {}, batch)
    np.testing.assert_allclose(first.y, y, atol=1e-6)
    found = propose(chain, networks | {"segmenter": {}}, batch)
    refined = chain.loop.refine(networks["refiner"], first).y
    np.testing.assert_allclose(found.y, refined, atol=1e-6)
    assert np.abs(found.y - first.y).max() > 0.01


def get_config():
    config = tiny.get_config()
    config.refiners = ("dae_ytrue", NAME, "dae_y")
    return config


@pytest.fixture(scope="module")
def chained(finished, tmp_path_factory):
    """The finished workdir with one more row."""
    folder = tmp_path_factory.mktemp("chained") / "run"
    shutil.copytree(finished, folder)
    run(get_config(), folder, "run", "")
    return folder


@pytest.fixture
def folder(chained, tmp_path):
    """A copy to write in."""
    return pathlib.Path(shutil.copytree(chained, tmp_path / "copy"))


def refine_by_hand(experiment, batch):
    """Class probabilities by the segmenter, after the DAE, and after the CRF."""
    dae = experiment.create_refiner("dae_y")
    networks = experiment.train_refiner("dae_y")
    first, second = (
        read_choice(experiment.workdir, n).refined for n in ("dae_y", NAME)
    )

    @jax.jit
    def compute(networks, batch):
        candidate = propose(experiment.segmenter, networks["segmenter"], batch)
        variables = networks["refiner"]
        condition = dae.apply(variables, candidate, method=dae.condition)
        return candidate.y, refine(
            lambda y: dae.apply(variables, y, condition, method=dae.reconstruct),
            candidate.y,
            step_size=first.step_size,
            num_iterations=first.num_iterations,
        ).y

    y, after_dae = compute(networks, batch)
    parameters = second.parameters | {"exact": True}
    iterations = second.num_iterations
    assert second.step_size == 1
    return (
        y,
        after_dae,
        iterinf.dense_crf(after_dae, batch.image, iterations, **parameters),
    )


def count(batch, y):
    """Confusion matrices [n k k]."""
    pairs = zip(jnp.asarray(batch.label), jnp.argmax(y, axis=-1), strict=True)
    return np.stack([iterinf.confusion_matrix(*pair, 11) for pair in pairs])


def test_equals_the_two_by_hand(chained):
    experiment = Experiment(get_config(), chained)
    batch = to_unit_range(experiment.dataset.test.stack())
    batch = batch._replace(image=jnp.asarray(batch.image))
    y, after_dae, after_crf = refine_by_hand(experiment, batch)
    test = read_arrays(chained / "refiners" / NAME / "test.npz")
    plain = read_arrays(chained / "segmenter" / "test.npz")["counts"]
    dae = read_arrays(chained / "refiners" / "dae_y" / "test.npz")["refined"]
    for found, expected in (
        (plain, count(batch, y)),
        (dae, count(batch, after_dae)),
        (test["initial"], dae),
        (test["refined"], count(batch, after_crf)),
    ):
        assert np.abs(found - expected).sum(axis=(1, 2)).max() <= 16  # near ties
    for before, after in ((plain, dae), (dae, test["refined"])):
        assert np.abs(after - before).sum(axis=(1, 2)).min() > 100


def test_predicts_what_was_counted(chained):
    """With the segmenter's own labels before, and a trajectory through both loops."""
    dataset = Experiment(get_config(), chained).dataset
    predictor = iterinf.load(chained, NAME)
    test = read_arrays(chained / "refiners" / NAME / "test.npz")["refined"]
    plain = read_arrays(chained / "segmenter" / "test.npz")["counts"]
    iterations = [
        read_choice(chained, n).refined.num_iterations for n in ("dae_y", NAME)
    ]
    for i in range(len(dataset.test)):
        record = dataset.test[i]
        found = predictor.predict(record.image, trajectory=True)
        right = (found.labels == record.label).sum()
        assert abs(right - np.trace(test[i])) <= 2
        assert (found.initial_labels == record.label).sum() == np.trace(plain[i])
        assert len(found.trajectory) == 1 + sum(iterations)
        np.testing.assert_array_equal(found.trajectory[-1], found.labels)
    dae = iterinf.load(chained, "dae_y").predict(record.image)
    reached = found.trajectory[iterations[0]]
    np.testing.assert_array_equal(reached, dae.labels)


def test_of_another_networks_probabilities_both_loops_start(chained, rng):
    y = rng.dirichlet(np.ones(11), (32, 48)).astype(np.float32)
    image = Experiment(get_config(), chained).dataset.test[0].image
    iterations = read_choice(chained, "dae_y").refined.num_iterations
    found, dae = (
        iterinf.load(chained, name).predict(image, trajectory=True, probabilities=y)
        for name in (NAME, "dae_y")
    )
    np.testing.assert_array_equal(found.initial_labels, y.argmax(-1))
    np.testing.assert_array_equal(found.trajectory[: iterations + 1], dae.trajectory)


def test_its_gain_is_over_the_segmenter_and_its_worth_over_the_dae(chained):
    document = json.loads((chained / "results" / "table.json").read_text())
    rows = {row["model"]: row for row in document["rows"]}
    assert list(rows)[-4] == TITLE  # before the last refiner and its controls
    iou = [rows[t]["mean_iou"] for t in ("FCN8", "FCN8 + DAE(y)", TITLE)]
    assert rows[TITLE]["gain"] == pytest.approx(iou[2] - iou[0])
    over = {d["over"]: d for d in document["differences"] if d["model"] == TITLE}
    assert set(over) == {"the segmenter alone", "FCN8 + DAE(y)"}
    gain = over["FCN8 + DAE(y)"]["mean IoU"][0]
    assert gain == pytest.approx(iou[2] - iou[1])
    notes = [note for note in document["notes"] if note.startswith(TITLE)]
    assert "the segmenter alone" in notes[0]
    assert notes[1].startswith(f"{TITLE} over FCN8 + DAE(y): mean IoU {gain:+.2f} [")


def test_its_images_start_from_the_dae(chained):
    experiment = Experiment(get_config(), chained)
    document = read_document((chained / "report.html").read_text())
    curves = {curve["name"]: curve for curve in document["curves"]}
    assert curves[NAME]["follows"] == "FCN8 + DAE(y)"
    chosen, iterations = (curves["dae_y"][key] for key in ("chosen", "num_iterations"))
    names = experiment.dataset.test.names
    for image in document["images"]:
        batch = experiment.dataset.test.stack([names.index(image["name"])])
        variables = experiment.train_segmenter()
        plain = np.asarray(segment(experiment.segmenter, variables, batch)[0], np.uint8)
        shown = unpack_maps(base64.b64decode(image["segmented"]), 0 * plain)
        np.testing.assert_array_equal(shown[0], plain)
        dae, crf = (
            unpack_maps(base64.b64decode(image["refined"][name][index]), plain)
            for name, index in (("dae_y", chosen), (NAME, 0))
        )
        assert (crf[0] != dae[iterations]).sum() <= 2  # near ties
        assert (crf[0] != plain).any()


def note_sweeps(monkeypatch):
    """Titles of what is counted from here on."""
    titles, counted = [], protocol.count_refinements

    def count_and_note(*args, **options):
        titles.append(options["title"])
        return counted(*args, **options)

    monkeypatch.setattr(protocol, "count_refinements", count_and_note)
    return titles


def test_a_finished_row_is_not_made_again_and_a_grid_resumes(folder, monkeypatch):
    titles = note_sweeps(monkeypatch)
    run(get_config(), folder, "evaluate", "")
    assert titles == []
    own = folder / "refiners" / NAME
    lines, kept = read_lines(own / "sweep.jsonl"), read_choice(folder, NAME)
    (own / "sweep.jsonl").write_text("".join(f"{line}\n" for line in lines[:3]))
    (own / "selection.json").unlink()
    run(get_config(), folder, "evaluate", "")
    assert titles == ["sweep 4 of 4 of DAE(y), then CRF"]
    assert read_choice(folder, NAME).refined == kept.refined


def test_another_choice_of_what_it_follows_is_another_start(folder, monkeypatch):
    path = folder / "refiners" / "dae_y" / "selection.json"
    content = json.loads(path.read_text())
    content["refined"] |= {"step_size": 1.0, "num_iterations": 1, "mean_iou": 0.25}
    path.write_text(json.dumps(content))
    message = "selection.json .* dae_y; remove it"
    for mode in ("run", "report"):
        with pytest.raises(UserError, match=message):
            run(get_config(), folder, mode, "")
    with pytest.raises(UserError, match=message):
        read_pipeline(folder, NAME)
    (folder / "refiners" / NAME / "selection.json").unlink()
    titles = note_sweeps(monkeypatch)
    run(get_config(), folder, "evaluate", "")
    swept = [f"sweep {i} of 4 of DAE(y), then CRF" for i in (1, 2, 3, 4)]
    assert [title for title in titles if title.endswith("CRF")] == [
        *swept,
        "test of DAE(y), then CRF",
    ]
    tests = [
        read_arrays(folder / "refiners" / name / "test.npz") for name in ("dae_y", NAME)
    ]
    assert np.abs(tests[0]["refined"] - tests[1]["initial"]).sum() <= 4


def test_what_it_follows_is_chosen_first(folder):
    shutil.rmtree(folder / "refiners" / NAME)
    path = folder / "refiners" / "dae_y" / "selection.json"
    kept = path.read_text()
    path.unlink()
    with pytest.raises(UserError, match="dae_y/selection.json does not exist"):
        read_pipeline(folder, NAME)
    config = get_config()
    config.refiners = (NAME, "dae_y")
    run(config, folder, "sweep", "")
    assert json.loads(path.read_text())["refined"] == json.loads(kept)["refined"]
    assert read_choice(folder, NAME).followed == read_choice(folder, "dae_y").refined


def test_both_loops_are_exported(folder):
    config = get_config()
    config.export.refiner = NAME
    run(config, folder, "export", "")
    exported = folder / "export" / NAME
    weights = load_file(exported / "weights.safetensors")
    image = Experiment(config, folder).dataset.test[0].image
    found = iterinf.load(folder, NAME).predict(image)
    images = jnp.asarray(image[None] / np.float32(255))
    y = call((exported / "segment_and_refine.jax").read_bytes(), weights, images)
    np.testing.assert_allclose(y[0], found.y, atol=1e-5)
    pipeline = read_pipeline(folder, NAME)
    batch = iterinf.Batch(images, jnp.zeros(images.shape[:3], jnp.int32))
    candidate = pipeline.propose(pipeline.networks, batch)
    features = {"pool2": candidate.features["pool2"]}
    own = take_refiner(weights)
    content = (exported / "refine.jax").read_bytes()
    y = call(content, own, candidate.y, features, images)
    np.testing.assert_allclose(y[0], found.y, atol=1e-5)
    card = (exported / "README.md").read_text()
    first, second = (read_choice(folder, name).refined for name in ("dae_y", NAME))
    assert (
        f"step size {first.step_size:g}, {first.num_iterations} iterations, then "
        f"step size {second.step_size:g}, " in card
    )
    assert "- DAE(y): `2 epochs" in card
    assert f"| {TITLE} |" in card
    assert f"\n{TITLE} over FCN8 + DAE(y): " in card


def test_the_card_of_what_it_follows_has_no_row_of_it(folder):
    config = get_config()
    config.export.refiner = "dae_y"
    run(config, folder, "export", "")
    card = (folder / "export" / "dae_y" / "README.md").read_text()
    assert "| FCN8 + DAE(y), one damped step |" in card
    assert TITLE not in card.split("## Use and limits")[0]
