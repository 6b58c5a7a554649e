"""What refiners are trained on whose inputs are whole frames' outputs."""

import contextlib
import itertools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf import create_refiner, create_segmenter
from iterinf.data import create_dataset
from iterinf.data.augment import crop_randomly
from iterinf.data.dataset import Split, stack_records
from iterinf.data.external import STRIDES
from iterinf.data.loader import make_train_batches
from iterinf.errors import UserError
from iterinf.experiment import trainer
from iterinf.experiment.stages import Experiment
from iterinf.training import frames
from iterinf.training.frames import add_frames, list_outputs
from iterinf.training.objectives import make_refiner_loss, propose, to_unit_range
from tests import tiny
from tests.conftest import read_times

NAMES = ("probabilities", "pool2")
SEGMENTER = create_segmenter("fcn8", num_classes=11, width=1 / 32, padding="same")
HEIGHT, WIDTH = 34, 54  # no multiples of the strides
OPTIONS = {"batch_size": 4, "crop_size": (16, 20), "flip_probability": 0.5, "seed": 7}


@pytest.fixture(scope="module")
def split():
    """Street scenes."""
    options = {"height": HEIGHT, "width": WIDTH, "num_train": 3}
    options |= {"num_validation": 1, "num_test": 1}
    return create_dataset("streets", seed=0, **options).train


@pytest.fixture(scope="module")
def variables():
    """Of the segmenter, not trained."""
    return jax.jit(SEGMENTER.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.fixture(scope="module")
def folder(split, variables, tmp_path_factory):
    """The files, written once."""
    folder = tmp_path_factory.mktemp("frames")
    add_frames(split, folder, NAMES, SEGMENTER, variables)
    return folder


@pytest.fixture(scope="module")
def expected(split, variables):
    """Images and outputs by (record, whether mirrored); the segmenter runs anew."""
    found = {}
    for i, mirrored in itertools.product(range(len(split)), (False, True)):
        image = split[i].image[:, :: -1 if mirrored else 1]
        batch = stack_records([split[i]])._replace(image=jnp.asarray(image)[None])
        y, h, _ = propose(SEGMENTER, variables, to_unit_range(batch))
        outputs = {"probabilities": y[0], "pool2": h["pool2"][0]}
        found[i, mirrored] = (image, jax.tree.map(np.asarray, outputs))
    return found


def take(count, split, **options):
    """The first batches."""
    with contextlib.closing(make_train_batches(split, **OPTIONS | options)) as batches:
        return list(itertools.islice(batches, count))


def find(image, images):
    """The one image that a crop is of, and the corner of that window."""
    size = image.shape[:2]
    places = [
        (key, (top, left))
        for key, whole in images.items()
        for top in range(0, HEIGHT - size[0] + 1, 4)
        for left in range(0, WIDTH - size[1] + 1, 4)
        if (whole[top : top + size[0], left : left + size[1]] == image).all()
    ]
    assert len(places) == 1
    return places[0]


def assert_rounded(array, other):
    """Two arrays agree up to float16."""
    assert array.dtype == np.float16
    np.testing.assert_allclose(array, other, rtol=2**-10, atol=1e-4)


def test_batches_are_crops_of_whole_frames_and_of_mirror_images(
    folder, split, expected
):
    """Also where the width, 54, is no multiple of the stride, 4."""
    with_frames = add_frames(split, folder, NAMES, SEGMENTER, {})
    images = {key: image for key, (image, _) in expected.items()}
    seen = set()
    for batch in take(6, with_frames):
        for i, image in enumerate(np.rint(255 * batch.image).astype(np.uint8)):
            key, corner = find(image, images)
            seen.add(key)
            assert batch.outputs.keys() == set(NAMES)
            for name, array in batch.outputs.items():
                top, left = (begin // STRIDES[name] for begin in corner)
                height, width = (length // STRIDES[name] for length in (16, 20))
                whole = expected[key][1][name]
                assert array[i].shape[:2] == (height, width)
                assert_rounded(array[i], whole[top : top + height, left : left + width])
    assert seen == set(expected)


def test_images_and_labels_are_those_of_crops(folder, split):
    """The stride of y is 1: the same draws are the same windows and flips."""
    with_frames = add_frames(split, folder, NAMES[:1], SEGMENTER, {})
    for batch, plain in zip(take(8, with_frames), take(8, split), strict=True):
        assert set(batch.outputs) == {"probabilities"}
        np.testing.assert_array_equal(batch.image, plain.image)
        np.testing.assert_array_equal(batch.label, plain.label)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_start_in_the_middle_goes_on_exactly(folder, split, num_threads):
    with_frames = add_frames(split, folder, NAMES, SEGMENTER, {})
    options = {"first_batch": 5, "num_threads": num_threads}
    found, wanted = take(3, with_frames, **options), take(8, with_frames)[5:]
    for batch, other in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)


@pytest.mark.parametrize("start", ["y", "y_true"])
def test_the_loss_of_a_whole_frame_is_that_of_the_segmenter(
    folder, split, variables, start
):
    """No crop and no flip: what "crops" computes, up to float16."""
    refiner = create_refiner(
        "dae", num_classes=11, widths=(4, 6, 8), features=("input", "pool2")
    )
    with_frames = add_frames(split, folder, list_outputs(refiner), SEGMENTER, {})
    options = {"crop_size": None, "flip_probability": 0.0}
    batch, plain = (take(1, s, **options)[0] for s in (with_frames, split))
    candidate = propose(SEGMENTER, variables, jax.tree.map(jnp.asarray, plain))
    params = {"refiner": jax.jit(refiner.init)(jax.random.key(1), candidate)["params"]}
    loss = make_refiner_loss(SEGMENTER, refiner, start=start, sigma=0.1)

    @jax.jit
    @jax.value_and_grad
    def compute(params, frozen, batch):
        return loss(params, frozen, batch, jax.random.key(2)).mean

    found, gradient = compute(params, {}, jax.tree.map(jnp.asarray, batch))
    wanted, other = compute(
        params, {"segmenter": variables}, jax.tree.map(jnp.asarray, plain)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    norms = [
        np.linalg.norm(np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]))
        for tree in (jax.tree.map(jnp.subtract, gradient, other), other)
    ]
    assert norms[0] < 0.01 * norms[1]


def test_a_refiner_is_given_what_it_reads():
    dae = create_refiner("dae", num_classes=11, features=("input", "pool4", "pool1"))
    assert list_outputs(dae) == ["probabilities", "pool4", "pool1"]
    module = create_refiner("context_module", num_classes=11)
    assert list_outputs(module) == ["probabilities"]


def test_only_what_is_missing_is_computed(folder, split, variables, tmp_path):
    """Another refiner's features, and what a kill left half written."""
    run = shutil.copytree(folder, tmp_path / "run")
    (run / "pool2.npy").rename(run / ".pool2.npy.tmp")
    with (run / ".pool2.npy.tmp").open("r+b") as file:
        file.truncate(1000)
    before = read_times(run)
    found = add_frames(split, run, (*NAMES, "pool1"), SEGMENTER, variables)
    after = read_times(run)
    assert after[run / "probabilities.npy"] == before[run / "probabilities.npy"]
    names = {path.name for path in run.iterdir()}
    assert names == {"probabilities.npy", "pool1.npy", "pool2.npy"}
    whole, again = (np.load(place / "pool2.npy") for place in (folder, run))
    np.testing.assert_array_equal(again, whole)
    assert found[1].outputs["pool1"].shape == (HEIGHT // 2, WIDTH // 2, 2)


def test_a_damaged_file_is_named(folder, split, tmp_path):
    path = shutil.copytree(folder, tmp_path / "run") / "pool2.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"pool2.npy cannot be read"):
        add_frames(split, tmp_path / "run", NAMES, SEGMENTER, {})


def test_features_beyond_float16_are_refused(split, tmp_path):
    class Large(nn.Module):
        def __call__(self, images):
            return images, {"pool1": 1e5 * images[:, ::2, ::2]}

    names = ("probabilities", "pool1")
    with pytest.raises(UserError, match=f"pool1 of {split.names[0]} .*float16"):
        add_frames(split, tmp_path, names, Large(), {})
    assert not list(tmp_path.iterdir())


def test_frames_of_two_sizes_are_named(split, variables, tmp_path):
    """Where check_data, which says so before anything is trained, did not run."""
    records = [split[0], crop_randomly(split[1], np.random.default_rng(0), (32, 32))]
    other = Split(records.__getitem__, ["large", "small"], range(2))
    with pytest.raises(UserError, match="34x54 .* 32x32"):
        add_frames(other, tmp_path, NAMES, SEGMENTER, variables)
    assert not list(tmp_path.iterdir())


# In an experiment.


def make_config(**changes):
    """A third DAE, trained on frames in both phases."""
    config = tiny.get_config()
    config.refiners = ("other",)
    config.refiner.other = config.refiner.dae_y.copy_and_resolve_references()
    config.refiner.other.title = "other"
    config.refiner.other.training.inputs = "frames"
    config.refiner.other.fine_tuning.update(inputs="frames", batch_size=4, num_epochs=1)
    config.update_from_flattened_dict(changes)
    return config


class PowerCutError(Exception):
    """Ends a run in the middle."""


def cut_power_at(monkeypatch, owner, name, count):
    """Lets the call after `count` others fail."""
    calls, function = itertools.count(), getattr(owner, name)

    def call(*args):
        if next(calls) == count:
            raise PowerCutError
        return function(*args)

    monkeypatch.setattr(owner, name, call)


def read_logs(workdir):
    """All losses."""
    paths = sorted((workdir / "refiners" / "other").rglob("metrics.jsonl"))
    lines = [
        json.loads(line) for path in paths for line in path.read_text().split("\n")[:-1]
    ]
    return [[line[key] for key in line if "loss" in key] for line in lines]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_the_same(finished, tmp_path):
    for name in ("whole", "killed"):
        shutil.copytree(finished, tmp_path / name)
    expected = Experiment(make_config(), tmp_path / "whole").train_refiner("other")
    workdir = tmp_path / "killed"
    for owner, name, count in (
        (frames, "check_size", 3),
        (trainer.ShardedBatches, "__next__", 3),
        (trainer.ShardedBatches, "__next__", 3),
    ):
        with pytest.MonkeyPatch.context() as patch:
            cut_power_at(patch, owner, name, count)
            experiment = Experiment(make_config(), workdir)
            with pytest.raises(PowerCutError):
                experiment.train_refiner("other")
    found = Experiment(make_config(), workdir).train_refiner("other")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert read_logs(workdir) == read_logs(tmp_path / "whole")
    assert len(read_logs(workdir)) == 3
    folder = workdir / "segmenter" / "frames"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"probabilities.npy", "pool2.npy"}
    # Trained, it needs them no more.
    shutil.rmtree(folder)
    again = Experiment(make_config(), workdir).train_refiner("other")
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmenter.model.padding": "published"}, "no crop begins where the segmen"),
        (
            {"refiner.other.training.jitter": 0.1},
            "training.inputs .* jitter",
        ),
        ({"refiner.other.fine_tuning.jitter": 0.1}, "fine_tuning.inputs .* jitter"),
    ],
)
def test_what_frames_do_not_allow_shows_before_anything_is_trained(
    tmp_path, changes, message
):
    with pytest.raises(UserError, match=f"config.refiner.other.*{message}"):
        Experiment(make_config(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
