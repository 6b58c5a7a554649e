"""Files in, files out: what is written, and what is said of what cannot be used."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import iterinf
from iterinf.data.image_io import encode_png, read_image, read_label, read_size
from iterinf.errors import UserError
from iterinf.experiment.modes import run
from iterinf.prediction.folder import find_images, predict_files
from iterinf.prediction.pipeline import Pipeline
from iterinf.runtime.files import lock_folder
from tests import tiny
from tests.conftest import read_times
from tests.test_main import run_main


def save(path, height, width, rng, **options):
    """Writes smooth noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image.resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path, rng):
    """Two images of the training images' shape."""
    for name in ("one.png", "two.jpg"):
        save(tmp_path / "photos" / name, 64, 96, rng)
    return tmp_path / "photos"


def test_four_images_on_the_command_line(finished, tmp_path, rng):
    """One gray, one 4000 pixels wide, one broken; no config, no lock is needed."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    save(photos / "a.png", 70, 96, rng)
    gray = read_image(save(photos / "gray.png", 150, 100, rng))[..., 0]
    Image.fromarray(gray).save(photos / "gray.png")
    wide = save(photos / "wide.jpg", 400, 4000, rng)
    (photos / "broken.jpg").write_bytes(wide.read_bytes()[:3000])
    workdir = shutil.copytree(finished, tmp_path / "run")
    with lock_folder(workdir):
        before = read_times(workdir)
        done = run_main(
            "--mode=predict",
            f"--workdir={workdir}",
            f"--config.predict.images={photos}/*.*",
            f"--config.predict.output={out}",
            "--config.progress=False",
            cwd=tmp_path,
        )
        assert read_times(workdir) == before
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith(f"iterinf: {photos}/broken.jpg ")
    assert lines[1].startswith("iterinf: 1 of 4 images")
    sizes = {"a": (70, 96), "gray": (150, 100), "wide": (400, 4000)}
    for kind, ending in (("labels", "png"), ("overlays", "jpg"), ("changes", "png")):
        found = {path.stem: read_size(path) for path in (out / kind).iterdir()}
        assert found == sizes
        assert all(path.suffix == f".{ending}" for path in (out / kind).iterdir())
    assert read_size(out / "before_after" / "wide.png") == (100, 3016)


def test_files_hold_what_python_predicts(finished, photos, tmp_path):
    out = tmp_path / "out"
    options = {"images": f"{photos}/*", "output": str(out), "trajectory": True}
    predict_files(finished, **options, show_progress=False)
    predictor = iterinf.load(finished)
    for name in ("one.png", "two.jpg"):
        image = read_image(photos / name)
        found = predictor.predict(image, trajectory=True)
        stem = name[:3]
        np.testing.assert_array_equal(
            read_label(out / "labels" / f"{stem}.png"), found.labels
        )
        frames = sorted((out / "trajectories" / stem).iterdir())
        assert len(frames) == len(found.trajectory)
        for frame, labels in zip(frames, found.trajectory, strict=True):
            np.testing.assert_array_equal(read_label(frame), labels)
        assert (out / "trajectories" / f"{stem}.gif").exists()
    legend = json.loads((out / "classes.json").read_text())
    assert [entry["name"] for entry in legend["classes"]] == list(predictor.classes)


def test_the_stage_reads_its_keys_alone(finished, photos, tmp_path):
    config = tiny.get_config()
    config.segmenter.training.num_epochs = 77
    config.refiners = ("dense_crf",)
    config.predict.update(images=str(photos), output=str(tmp_path / "out"), scale=0.5)
    config.progress = False
    before = (finished / "config.json").read_text()
    run(config, finished, "predict", "")
    assert (finished / "config.json").read_text() == before
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2


def test_probabilities_of_another_network(finished, photos, tmp_path, rng, capsys):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    y = rng.dirichlet(np.ones(11), (64, 96)).astype(np.float16)
    np.save(outputs / "one.npy", y)
    options = {"images": str(photos), "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match="1 of 2 images"):
        predict_files(finished, **options, probabilities=str(outputs))
    assert f"iterinf: {outputs}/two.npz" in capsys.readouterr().err
    image = read_image(photos / "one.png")
    expected = iterinf.load(finished).predict(image, probabilities=y).labels
    np.testing.assert_array_equal(
        read_label(tmp_path / "out" / "labels" / "one.png"), expected
    )


def test_what_is_not_finite_is_named_and_not_written(
    finished, photos, tmp_path, capsys, monkeypatch
):
    """A black image's y is nan here; the one that shares its batch is as it was."""
    refine = Pipeline.refine

    def break_black(self, networks, candidate, **options):
        refinement = refine(self, networks, candidate, **options)
        black = candidate.image.max(axis=(1, 2, 3), keepdims=True) == 0
        return refinement._replace(y=jnp.where(black, jnp.nan, refinement.y))

    monkeypatch.setattr(Pipeline, "refine", break_black)
    black = np.zeros((64, 96, 3), np.uint8)
    (photos / "black.png").write_bytes(encode_png(black))
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 of 3 images"):
        predict_files(finished, images=str(photos), output=str(out))
    assert "black.png has non-finite" in capsys.readouterr().err
    assert {path.stem for path in (out / "labels").iterdir()} == {"one", "two"}
    with pytest.raises(UserError, match="the image .*non-finite"):
        iterinf.load(finished).predict(black)


def test_a_legend_is_written_with_the_first_image_and_never_replaced(
    finished, tmp_path, rng
):
    options = {"images": str(tmp_path / "photos"), "output": str(tmp_path / "out")}
    broken = tmp_path / "photos" / "a.png"
    broken.parent.mkdir()
    broken.touch()
    with pytest.raises(UserError, match="1 of 1 images"):
        predict_files(finished, **options)
    assert not (tmp_path / "out").exists()
    save(tmp_path / "photos" / "b.png", 64, 96, rng)
    legend = tmp_path / "out" / "classes.json"
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 2 images"):
            predict_files(finished, **options)
        assert (tmp_path / "out" / "legend.png").exists()
        assert legend.exists()
    legend.write_text('{"classes": ["mine"]}')
    with pytest.raises(UserError, match="out/classes.json exists"):
        predict_files(finished, **options)
    assert legend.read_text() == '{"classes": ["mine"]}'


def test_names_are_paths_below_the_folder_of_all(tmp_path, rng):
    paths = [save(tmp_path / name / "0.png", 4, 4, rng) for name in ("a", "b")]
    assert find_images(f"{tmp_path}/*/0.png") == dict(
        zip(paths, ("a/0", "b/0"), strict=True)
    )
    assert find_images(str(paths[0])) == {paths[0]: "0"}
    assert find_images(f"{tmp_path}/a") == {paths[0]: "0"}
    odd = save(tmp_path / "[x].png", 4, 4, rng)
    assert find_images(str(odd)) == {odd: "[x]"}
    save(tmp_path / "a" / "0.jpg", 4, 4, rng)
    with pytest.raises(UserError, match="a/0.jpg and .*a/0.png"):
        find_images(f"{tmp_path}/a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ""}, "--config.predict.images"),
        ({"output": ""}, "--config.predict.output"),
        ({"images": "{}/no/*.png"}, "images is '.*/no/.*.png'"),
        ({"images": "{}/empty"}, "images is '.*/empty'"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"probabilities": "no"}, "probabilities is 'no'"),
        ({"refiner": "crf"}, "'crf'.* dae_ytrue, dae_y"),
    ],
)
def test_what_cannot_begin(finished, photos, tmp_path, changes, message):
    (tmp_path / "empty").mkdir()
    options = {"images": str(photos), "output": str(tmp_path / "out")} | {
        key: value.format(tmp_path) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        predict_files(finished, **options)
    assert not (tmp_path / "out").exists()


def test_images_are_not_overwritten(finished, tmp_path, rng):
    path = save(tmp_path / "labels" / "one.png", 64, 96, rng)
    content = path.read_bytes()
    with pytest.raises(UserError, match="one.png "):
        predict_files(finished, images=str(path), output=str(tmp_path))
    assert path.read_bytes() == content


def test_a_camera_held_upright(tmp_path, rng):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    assert read_size(path) == (6, 4)
    turned = read_image(path, upright=True)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))
    np.testing.assert_array_equal(read_image(path), pixels)  # data sets have none
    path.write_bytes(encode_png(pixels))
    assert read_size(path) == (4, 6)
