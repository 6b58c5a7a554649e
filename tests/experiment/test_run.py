"""The stages end to end, interrupted and not, at tiny size."""

import base64
import csv
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import base
from iterinf.data.camvid_frames import CLASSES
from iterinf.errors import UserError
from iterinf.experiment import stages
from iterinf.experiment.modes import run
from iterinf.experiment.stages import Experiment
from iterinf.prediction.pipeline import read_pipeline
from iterinf.report.trajectories import unpack_maps
from iterinf.runtime.files import read_arrays, write_arrays
from tests import tiny
from tests.browser import open_page
from tests.fixtures.pages import read_document
from tests.fixtures.vgg16 import make_vgg16

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [
    "FCN8",
    "FCN8 + DAE(y_true), one reconstruction",
    "FCN8 + DAE(y_true), one damped step",
    "FCN8 + DAE(y_true)",
    "FCN8 + DAE(y), one reconstruction",
    "FCN8 + DAE(y), one damped step",
    "FCN8 + DAE(y)",
]


def read_table(workdir):
    with (workdir / "results" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def read_logs(workdir):
    return {path: path.read_text() for path in workdir.glob("**/metrics.jsonl")}


@pytest.fixture
def workdir(finished, tmp_path_factory):
    """The workdir of a finished run."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("copy") / "run")


def test_leaves_its_results(workdir):
    rows = read_table(workdir)
    assert [row["model"] for row in rows] == ROWS
    columns = ["model", *CLASSES, "mean_iou", "global_accuracy", "gain", "gain_low"]
    columns += ["gain_high", "step_size", "num_iterations"]
    for name in ("boundary_f1", "nll", "ece", "fragmentation"):
        columns += [name, f"{name}_gain", f"{name}_low", f"{name}_high"]
    assert list(rows[0]) == columns
    for row in rows[1:]:
        gain = float(row["mean_iou"]) - float(rows[0]["mean_iou"])
        assert float(row["gain"]) == pytest.approx(gain, abs=0.011)
        assert float(row["gain_low"]) <= float(row["gain"]) <= float(row["gain_high"])
    folder = workdir / "refiners" / "dae_y"
    with np.load(folder / "curve.npz") as curve:
        assert curve["mean_iou"].shape == (2, 3)
        best = curve["mean_iou"].max()
    choice = json.loads((folder / "selection.json").read_text())["refined"]
    assert choice["mean_iou"] == best
    assert float(rows[-1]["step_size"]) == choice["step_size"]
    assert int(rows[-1]["num_iterations"]) == choice["num_iterations"]
    document = json.loads((workdir / "results" / "table.json").read_text())
    assert document["notes"][1].startswith("FCN8 + DAE(y) ")
    provenance = document["provenance"]
    assert (provenance["command"], provenance["seed"]) == ("the command", 0)
    assert provenance["FCN8"].startswith("2 epochs, epoch limit reached, ")
    assert "on training crops, " in provenance["FCN8"]
    assert provenance["DAE(y)"].startswith("2 epochs, epoch limit reached, ")
    cut_off = [note for note in document["notes"] if "may not have converged" in note]
    titles = ("FCN8", "DAE(y_true)", "DAE(y)")
    assert [note.split(" was trained")[0] for note in cut_off] == list(titles)
    assert "all of its 2 epochs (best validation/loss after" in cut_off[-1]
    assert (workdir / "results" / "table.md").read_text().startswith("| model | sky ")
    figures = {path.name for path in (workdir / "results" / "figures").iterdir()}
    assert figures == {
        "figure3.png",
        "figure4_dae_y.png",
        "figure4_dae_ytrue.png",
    }


def strip(path, keep):
    """Leaves some arrays of an .npz, as an earlier version wrote it."""
    write_arrays(path, **{k: v for k, v in read_arrays(path).items() if keep(k)})


def test_a_workdir_of_an_earlier_version_is_counted_again(workdir):
    """Its choices stay; what test.npz lacks is counted, and nothing is trained."""
    tables, logs = (workdir / "results" / "table.csv").read_text(), read_logs(workdir)
    folders = [workdir / "refiners" / name for name in ("dae_y", "dae_ytrue")]
    for folder in (*folders, workdir / "segmenter"):
        strip(folder / "test.npz", lambda key: "/" not in key)
    for folder in folders:
        strip(folder / "curve.npz", lambda key: "boundary" not in key)
        content = json.loads((folder / "selection.json").read_text())
        content.pop("metric")
        for choice in ("refined", "damped"):
            content[choice].pop("boundary_f1")
        (folder / "selection.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="earlier version; run --mode=evaluate first"):
        run(tiny.get_config(), workdir, "report", "")
    run(tiny.get_config(), workdir, "run", "")
    assert (workdir / "results" / "table.csv").read_text() == tables
    assert read_logs(workdir) == logs


def test_a_choice_by_another_metric_is_refused(workdir, tmp_path):
    config = tiny.get_config()
    config.refiner.dae_y.selection.metric = "boundary_f1"
    with pytest.raises(UserError, match="selection.metric"):
        run(config, workdir, "run", "")
    folder = workdir / "refiners" / "dae_y"
    (folder / "selection.json").unlink()
    run(config, workdir, "run", "")
    choice = json.loads((folder / "selection.json").read_text())
    assert choice["metric"] == "boundary_f1"
    curve = read_arrays(folder / "curve.npz")
    assert choice["refined"]["boundary_f1"] == curve["boundary_f1"].max()
    document = json.loads((workdir / "results" / "table.json").read_text())
    assert "chosen by boundary_f1" in document["provenance"]["DAE(y)"]


def test_its_page_shows_what_was_counted(workdir):
    assert check_page(tiny.get_config(), workdir) == {"dae_y", "dae_ytrue"}


def check_page(config, workdir):
    """The packed label maps have as many right pixels as test.npz says.

    Returns:
      The refiners whose maps change over the iterations.
    """
    document = read_document((workdir / "report.html").read_text())
    dataset = Experiment(config, workdir).dataset
    assert {p["name"] for p in document["images"]} == set(dataset.test.names)
    plain = read_arrays(workdir / "segmenter" / "test.npz")["counts"]
    shown, changed = set(), set()
    for image in document["images"]:
        index = dataset.test.names.index(image["name"])
        label, start = dataset.test[index].label, np.zeros((32, 48), np.uint8)
        packed = base64.b64decode(image["segmented"])
        segmented = unpack_maps(packed, start)[0]
        assert (segmented == label).sum() == np.trace(plain[index])
        shown |= set(segmented.flat)
        for refiner in document["curves"]:
            texts = image["refined"][refiner["name"]]
            assert len(texts) == 2
            packed = base64.b64decode(texts[refiner["chosen"]])
            maps = unpack_maps(packed, segmented)
            assert len(maps) == 4
            np.testing.assert_array_equal(maps[0], segmented)
            test = read_arrays(workdir / "refiners" / refiner["name"] / "test.npz")
            right = (maps[refiner["num_iterations"]] == label).sum()
            # A batch of other images may round a tie otherwise.
            assert abs(right - np.trace(test["refined"][index])) <= 2
            if (maps[1:] != segmented).any():
                changed.add(refiner["name"])
    assert len(shown) > 1
    return changed


def test_batch_statistics_give_one_network_to_all_rows_and_images(tmp_path):
    """An image is normalised with the same others wherever it is counted or drawn."""
    config = tiny.get_config()
    config.segmenter = base.create_fc_densenet()
    config.segmenter.model.update(
        blocks=(1,), bottleneck=1, growth_rate=3, first_channels=4, statistics="batch"
    )
    config.segmenter.fine_tuning.num_epochs = 0
    config.segmenter.training.update(batch_size=4, crop_size=(32, 32), num_epochs=1)
    config.refiners = ("dae_y",)
    config.refiner.dae_y.model.update(widths=(4, 6), features=("pool1",))
    config.refiner.dae_y.training.num_epochs = 1
    config.evaluation.update(batch_size=3, sweep_batch_size=2)
    with pytest.raises(UserError, match="sweep_batch_size is 2, expected 3"):
        run(config, tmp_path, "run", "")
    config.evaluation.sweep_batch_size = 3
    run(config, tmp_path, "run", "")
    plain = read_arrays(tmp_path / "segmenter" / "test.npz")["counts"]
    test = read_arrays(tmp_path / "refiners" / "dae_y" / "test.npz")
    np.testing.assert_array_equal(plain, test["initial"])
    check_page(config, tmp_path)


def test_its_page_opens(workdir):
    steps = [{"set": ["#refiner", "0"]}, {"set": ["#iteration", "3"]}, {"press": "5"}]
    found = open_page(workdir / "report.html", steps)
    assert found["problems"] == []
    assert "after 3 iterations of FCN8 + DAE(y_true)" in found["seen"][-1]["status"]
    assert found["seen"][-1]["pixels"] != found["seen"][-2]["pixels"]


def test_a_finished_run_is_not_run_again(workdir):
    def list_states():
        """All but results/: checkpoints by time, other files by content."""
        paths = [p for p in workdir.glob("**/*") if p.is_file() and p.suffix != ".png"]
        checkpoints = {
            p: p.stat().st_mtime_ns for p in paths if "checkpoints" in str(p)
        }
        ours = ("metrics.jsonl", "selection.json", "curve.npz", "test.npz", "table.csv")
        assert checkpoints
        return checkpoints, {p: p.read_bytes() for p in paths if p.name in ours}

    before = list_states()
    run(tiny.get_config(), workdir, "run", "again")
    assert list_states() == before


def copy_folder(workdir, tmp_path):
    return pathlib.Path(shutil.copytree(workdir, tmp_path / "copy"))


def test_stages_come_one_after_the_other(workdir, tmp_path):
    """Test is read when the choice is on disk, and the choice is read from there."""
    folder = copy_folder(workdir, tmp_path)
    shutil.rmtree(folder / "results")
    results = [folder / "refiners" / name for name in ("dae_y", "dae_ytrue")]
    names = ("sweep.jsonl", "selection.json", "curve.npz", "test.npz")
    for result in results:
        for name in names:
            (result / name).unlink()
    run(tiny.get_config(), folder, "train_refiner", "")
    assert not any((result / name).exists() for result in results for name in names)
    run(tiny.get_config(), folder, "sweep", "")
    for result in results:
        assert (result / "selection.json").exists()
        assert not (result / "test.npz").exists()
    assert not (folder / "results").exists()
    with pytest.raises(UserError, match="no .*test.npz; run --mode=evaluate first"):
        run(tiny.get_config(), folder, "report", "")
    run(tiny.get_config(), folder, "evaluate", "")
    assert all((result / "test.npz").exists() for result in results)
    assert not (folder / "results").exists()
    run(tiny.get_config(), folder, "report", "")
    assert read_table(folder) == read_table(workdir)


def test_a_report_trains_nothing(workdir, tmp_path):
    folder = copy_folder(workdir, tmp_path)
    shutil.rmtree(folder / "refiners" / "dae_y" / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint in .*dae_y to draw Figure 3"):
        run(tiny.get_config(), folder, "report", "")
    assert not (folder / "refiners" / "dae_y" / "checkpoints").exists()


def test_a_workdir_of_other_data_is_refused(workdir, tmp_path):
    folder = copy_folder(workdir, tmp_path)
    data = json.loads((folder / "data.json").read_text())
    data["test"]["first_image"] += 1
    (folder / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="results of other data .its test differ"):
        run(tiny.get_config(), folder, "run", "")


def test_data_are_checked_before_anything_is_trained(tmp_path, monkeypatch):
    def read_and_fail(dataset, **options):
        raise UserError("test/9.png is broken")

    monkeypatch.setattr(stages, "check_dataset", read_and_fail)
    with pytest.raises(UserError, match="9.png is broken"):
        run(tiny.get_config(), tmp_path, "run", "")
    assert not list(tmp_path.glob("**/checkpoints/*"))


CANNOT_BE_BUILT = [
    ("refiner.dae_y.name", "dea", "unknown refiner 'dea'; known: .*dae"),
    ("refiner.dae_y.model.decoder", "up", "unknown decoder 'up'"),
    ("refiner.dae_y.objective.start", "z", "unknown start 'z'"),
    ("refiner.dae_y.objective.constraint", "clap", "unknown constraint 'clap'"),
    ("segmenter.fine_tuning.optimizer.name", "adamm", "optimizer 'adamm'"),
    ("refiner.dae_y.training.optimizer.name", "adamm", "optimizer 'adamm'"),
    ("segmenter.training.optimizer.name", "adamm", "optimizer 'adamm' of optax"),
]


def test_what_cannot_be_built_shows_before_anything_is_trained(tmp_path):
    """And leaves nothing that keeps another config from the workdir."""
    for key, value, message in CANNOT_BE_BUILT:
        config = tiny.get_config()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=message):
            run(config, tmp_path, "run", "")
        assert not list(tmp_path.glob("**/checkpoints/*"))
    run(tiny.get_config(), tmp_path, "train_segmenter", "")


def test_the_choice_on_disk_is_the_one_evaluated(workdir, tmp_path):
    folder = copy_folder(workdir, tmp_path)
    path = folder / "refiners" / "dae_y" / "selection.json"
    content = json.loads(path.read_text())
    content["refined"] |= {"step_size": 1.0, "num_iterations": 1}
    content["damped"]["step_size"] = 1.0
    path.write_text(json.dumps(content))
    run(tiny.get_config(), folder, "run", "")
    assert json.loads(path.read_text()) == content
    rows, before = read_table(folder), read_table(workdir)
    assert [row["model"] for row in rows] == ROWS
    assert rows[:4] == before[:4]  # of the other refiner
    reconstructed, damped, refined = (row | {"model": ""} for row in rows[-3:])
    assert reconstructed == before[-3] | {"model": ""}
    assert damped == refined == reconstructed


def test_a_refiner_added_later_is_trained_alone(tmp_path):
    config = tiny.get_config()
    config.refiners = ("dae_y",)
    later = config.refiner.dae_ytrue
    del config.refiner["dae_ytrue"]
    run(config, tmp_path, "sweep", "")
    logs = read_logs(tmp_path)
    config.refiner.dae_ytrue = later
    config.refiners = ("dae_ytrue", "dae_y")
    run(config, tmp_path, "run", "")
    assert [row["model"] for row in read_table(tmp_path)] == ROWS
    assert {path: read_logs(tmp_path)[path] for path in logs} == logs
    del config.refiner["dae_ytrue"]
    config.refiners = ("dae_y",)
    run(config, tmp_path, "report", "")
    rows = [row["model"] for row in read_table(tmp_path)]
    assert rows == [ROWS[0], *ROWS[4:]]


def test_a_workdir_of_another_config_is_refused(workdir):
    config = tiny.get_config()
    config.segmenter.training.num_epochs = 3
    with pytest.raises(UserError, match="config.segmenter.training.num_epochs = 2"):
        run(config, workdir, "run", "")


def test_what_shapes_no_result_may_change(workdir):
    config = tiny.get_config()
    config.progress = False
    config.loader.num_threads = 2
    rows = read_table(workdir)
    run(config, workdir, "run", "")
    assert read_table(workdir) == rows


def test_another_segmenter_in_two_phases_with_running_statistics(tmp_path):
    config = tiny.get_config()
    config.segmenter = base.create_fc_densenet()
    config.segmenter.class_weights = "median_frequency"
    config.segmenter.model.update(
        blocks=(1,),
        bottleneck=1,
        growth_rate=3,
        first_channels=4,
        statistics="running",
    )
    config.segmenter.training.update(batch_size=4, crop_size=(32, 32), num_epochs=1)
    config.segmenter.fine_tuning.update(batch_size=2, num_epochs=1)
    config.refiners = ("dae_y",)
    config.refiner.dae_y.model.update(widths=(4, 6), features=("pool1",))
    run(config, tmp_path, "run", "")
    for phase in ("segmenter", "segmenter/fine_tuning"):
        assert len((tmp_path / phase / "metrics.jsonl").read_text().splitlines()) == 1
    assert [row["model"] for row in read_table(tmp_path)] == [
        row.replace("FCN8", "FC-DenseNet103") for row in [ROWS[0], *ROWS[4:]]
    ]
    document = json.loads((tmp_path / "results" / "table.json").read_text())
    assert "fine-tuning 1 epochs" in document["provenance"]["FC-DenseNet103"]
    experiment = Experiment(config, tmp_path)
    assert set(experiment.train_segmenter()) == {"params", "statistics"}
    networks = read_pipeline(tmp_path).networks
    jax.tree.map(
        np.testing.assert_array_equal, networks, experiment.train_refiner("dae_y")
    )
    summary = json.loads((tmp_path / "segmenter" / "summary.json").read_text())
    path = tmp_path / "refiners" / "dae_y" / "selection.json"
    initial = read_arrays(path.with_name("curve.npz"))["initial_mean_iou"]
    assert summary["mean_iou_on_validation"] == pytest.approx(initial, abs=1e-6)


def test_training_starts_from_foreign_weights_and_goes_on_without_them(rng, tmp_path):
    config = tiny.get_config()
    arrays = make_vgg16(rng, widening=2)
    path = tmp_path / "vgg16.npz"
    np.savez(path, **arrays)
    config.segmenter.init_from = str(path)
    config.segmenter.training.optimizer.learning_rate = 0.0
    config.segmenter.training.num_epochs = 1
    left = tmp_path / "run" / "segmenter" / "checkpoints" / "4.orbax-checkpoint-tmp"
    left.mkdir(parents=True)  # by a kill in the first write
    run(config, tmp_path / "run", "train_segmenter", "")
    path.unlink()
    experiment = Experiment(config, tmp_path / "run")
    assert experiment.segmenter.input_std == (0.229, 0.224, 0.225)
    kernel = experiment.train_segmenter()["params"]["conv4_2"]["kernel"]
    expected = arrays["features.19.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_end_to_end_a_copy_of_the_segmenter_is_trained(workdir, tmp_path):
    """The segmenter alone is unchanged; its trained copy has a row, and is refined."""
    shutil.copytree(workdir, tmp_path / "run")
    config = tiny.get_config()
    config.refiners = ("joint",)
    config.refiner.joint = config.refiner.dae_y.copy_and_resolve_references()
    config.refiner.joint.update(title="joint DAE", end_to_end=True)
    config.refiner.joint.objective.proposal_cross_entropy = 1.0
    config.refiner.joint.selection.update(stop=9.0, count_stopped=False)
    with pytest.raises(UserError, match="selection.stop"):
        run(config, tmp_path / "run", "run", "")
    config.refiner.joint.selection.count_stopped = True
    run(config, tmp_path / "run", "run", "")
    assert [row["model"] for row in read_table(tmp_path / "run")] == [
        "FCN8",
        "FCN8 + joint DAE, its own segmenter",
        "FCN8 + joint DAE, one reconstruction",
        "FCN8 + joint DAE, one damped step",
        "FCN8 + joint DAE",
    ]
    assert read_table(tmp_path / "run")[0] == read_table(workdir)[0]
    experiment = Experiment(config, tmp_path / "run")
    plain, own = (
        networks["params"]["conv1_1"]["kernel"]
        for networks in (
            experiment.train_segmenter(),
            experiment.train_refiner("joint")["segmenter"],
        )
    )
    assert np.abs(plain - own).max() > 1e-3
    networks = read_pipeline(tmp_path / "run", "joint").networks
    kernel = networks["segmenter"]["params"]["conv1_1"]["kernel"]
    np.testing.assert_array_equal(kernel, own)
    # All images stop in the first step: nothing changes after it.
    curve = read_arrays(tmp_path / "run" / "refiners" / "joint" / "curve.npz")
    assert np.ptp(curve["mean_iou"], axis=1).max() == 0
    test = read_arrays(tmp_path / "run" / "refiners" / "joint" / "test.npz")
    assert len(set(test["mean_iou"])) == 1
    np.testing.assert_array_equal(test["refined"].sum(), test["initial"].sum())
