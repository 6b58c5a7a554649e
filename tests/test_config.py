"""What a config must say, and what a workdir's results bind."""

import json

import pytest

from configs import base, precomputed, released_2017_fc_densenet103
from iterinf.config import check_crops, check_settings, flatten, reads_frames
from iterinf.errors import UserError
from iterinf.workdir import keep_settings
from tests import tiny


def make_settings(**changes):
    """The tiny config as plain dicts, some leaves changed by their path."""
    config = tiny.get_config()
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return json.loads(config.to_json())


def test_flatten():
    tree = {"a": 1, "b": {"c": (2, 3), "d": {"e": None}}}
    assert flatten(tree) == {"a": 1, "b.c": (2, 3), "b.d.e": None}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("segmenter.training.batch_size", 0),
        ("refiner.dae_y.training.num_epochs", 0),
        ("refiner.dae_y.training.patience", 0),
        ("refiner.dae_y.selection.num_iterations", 0),
        ("refiner.dae_y.selection.step_sizes", ()),
        ("refiner.dae_y.selection.damped_step_sizes", (0.0, 1.0)),
        ("refiner.crf_rnn.model.color_width", 0.0),
        ("refiner.dense_crf.selection.parameters.color_width", (0.5,)),
        ("refiner.dense_crf.selection.parameters.spatial_width", (0.0,)),
        ("refiner.dense_crf.selection.parameters.spatial_weight", ()),
        ("refiner.dense_crf.selection.parameters.color_width", ("a",)),
        ("evaluation.batch_size", -1),
        ("evaluation.num_resamples", 0),
        ("segmenter.training.monitor", "validation/miou"),
        ("refiner.dae_y.training.crop_size", (48,)),
        ("refiner.dae_y.training.crop_size", (32.0, 9.0)),
        ("refiner.dae_y.selection.step_sizes", ("a",)),
        ("segmenter.training.ema_decay", 1.0),
        ("refiner.dae_y.training.flip_probability", 2.0),
        ("refiner.dae_y.training.crop_size", (0, 9)),
        ("segmenter.training.crop_size", (9, 9, 9)),
        ("segmenter.training.optimizer.learning_rate", -1.0),
        ("segmenter.training.optimizer.learning_rate", float("inf")),
        ("segmenter.training.optimizer.decay_per_epoch", -0.9),
        ("segmenter.training.optimizer.decay_per_epoch", 0.0),
        ("segmenter.training.optimizer.decay_per_epoch", 1.1),
        ("refiner.dae_y.objective.recycle_step_size", 2.0),
        ("refiner.dae_y.objective.num_recycles", -1),
        ("refiner.dae_y.selection.metric", "nll"),
        ("evaluation.boundary_tolerance", 0.75),
        ("refiner.dae_y.objective.cross_entropy", -1.0),
        ("refiner.dae_y.objective.sigma", float("nan")),
        ("seed", -1),
        ("loader.num_threads", -1),
        ("segmenter.training.jitter", -1.0),
        ("seed", 2**32),
        ("dtype", "float23"),
        ("dtype", "float16"),
        ("evaluation.sweep_dtype", "float23"),
        ("evaluation.sweep_batch_size", 0),
    ],
)
def test_values_that_cannot_be_are_named(key, value):
    with pytest.raises(UserError, match=f"^config.{key} is "):
        check_settings(make_settings(**{key.replace(".", "__"): value}))


@pytest.mark.parametrize("value", [None, "7", True, [7]])
def test_values_of_another_type_are_named(value):
    settings = make_settings()
    settings["seed"] = value
    with pytest.raises(UserError, match="config.seed is "):
        check_settings(settings)


@pytest.mark.parametrize(
    ("group", "key", "message"),
    [
        ("segmenter.training", "num_epoch", "did you mean num_epochs"),
        ("refiner.dae_y.selection", "steps", "selection.steps is unknown"),
        ("", "refinerz", "config.refinerz is unknown; did you mean refiner"),
        ("refiner.dae_y.training.optimizer", "lr", "optimizer.lr is unknown"),
    ],
)
def test_misspelt_keys_of_a_config_file_are_named(group, key, message):
    settings = make_settings()
    part = settings
    for name in group.split(".") if group else ():
        part = part[name]
    part[key] = 1
    with pytest.raises(UserError, match=message):
        check_settings(settings)


@pytest.mark.parametrize(
    "key",
    ["title", "selection", "end_to_end", "fine_tuning", "objective", "selection.stop"],
)
def test_missing_keys_of_a_refiner_are_named(key):
    settings = make_settings()
    part = settings["refiner"]["dae_y"]
    *groups, name = key.split(".")
    for group in groups:
        part = part[group]
    del part[name]
    with pytest.raises(UserError, match=f"config.refiner.dae_y.{key} is missing"):
        check_settings(settings)


def test_inference_alone_may_be_in_float16():
    check_settings(make_settings(evaluation__sweep_dtype="float16"))


def test_something_must_be_minimised():
    changes = {"refiner__dae_y__objective__squared_error": 0.0}
    check_settings(make_settings(**changes))
    changes |= {"refiner__dae_y__objective__cross_entropy": 0.0}
    with pytest.raises(
        UserError, match="dae_y.objective.*squared_error and cross_entropy"
    ):
        check_settings(make_settings(**changes))


def test_crops_lie_inside_every_image():
    settings = make_settings(refiner__dae_y__training__crop_size=(32, 49))
    check_crops(settings, {(32, 49), (40, 60)}, 1)
    with pytest.raises(
        UserError,
        match="config.refiner.dae_y.training.crop_size is 32x49.*32x48",
    ):
        check_crops(settings, {(32, 50), (33, 48)}, 1)
    settings["refiners"] = ["dae_ytrue"]
    check_crops(settings, {(32, 48)}, 1)


def test_a_segmenter_has_the_keys_of_its_kind():
    settings = make_settings(segmenter__name="precomputed")
    with pytest.raises(
        UserError, match="name is 'precomputed'.*configs/precomputed.py"
    ):
        check_settings(settings)
    settings["segmenter"] = {"name": "fcn8", "title": "", "model": {}, "outputs": "."}
    with pytest.raises(UserError, match="name is 'fcn8'.*name, title, model, outputs"):
        check_settings(settings)
    settings["segmenter"]["name"] = "precomputed"
    check_settings(settings)


@pytest.mark.parametrize("size", [None, 3])
def test_statistics_of_batches_need_batches_of_one_size(size):
    """Those of the segmenter's own row, and those of the sweep."""
    config = released_2017_fc_densenet103.get_config()
    check_settings(json.loads(config.to_json()))
    config.evaluation.sweep_batch_size = size
    with pytest.raises(UserError, match=f"sweep_batch_size is {size}, expected"):
        check_settings(json.loads(config.to_json()))


def test_crops_are_multiples_of_the_stride():
    settings = make_settings()
    check_crops(settings, {(32, 48)}, 16)
    settings["refiner"]["dae_y"]["training"]["crop_size"] = [32, 40]
    check_crops(settings, {(32, 48)}, 8)
    message = r"config.refiner.dae_y.training.crop_size is \[32, 40\], .* of 16"
    with pytest.raises(UserError, match=message):
        check_crops(settings, {(32, 48)}, 16)


def test_whole_images_must_be_of_one_size():
    settings = make_settings(segmenter__fine_tuning__num_epochs=1)
    check_crops(settings, {(40, 60)}, 1)
    with pytest.raises(UserError, match="segmenter.fine_tuning.crop_size is None"):
        check_crops(settings, {(40, 60), (60, 40)}, 1)
    settings["segmenter"]["fine_tuning"]["num_epochs"] = 0
    check_crops(settings, {(40, 60), (60, 40)}, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refiners": ()}, "config.refiners is empty"),
        ({"refiners": ("dea_y",)}, "'dea_y'.*dae_y, dae_ytrue"),
        ({"refiners": ("dae_y", "dae_y")}, "name 'dae_y'"),
        ({"refiner__dae_y__title": "DAE(y_true)"}, "title 'DAE\\(y_true\\)'"),
        (
            {"refiner__dae_y__objective__proposal_cross_entropy": 1.0},
            "proposal_cross_entropy is 1.0",
        ),
    ],
)
def test_refiners_that_cannot_be_are_named(changes, message):
    check_settings(make_settings())
    with pytest.raises(UserError, match=message):
        check_settings(make_settings(**changes))


@pytest.mark.parametrize("followed", ["dae", "dae_no_y", "first", "second"])
def test_a_refiner_follows_one_of_the_table_that_follows_none(followed):
    """Not an unknown one, one that is not listed, itself, or one that follows."""
    config = tiny.get_config()
    for name in ("first", "second"):
        config.refiner[name] = base.create_dense_crf(name, "dae_y")
    config.refiners = ("second", "dae_y", "first")
    check_settings(json.loads(config.to_json()))
    config.refiner.second.follows = followed
    message = f"second.follows is '{followed}'.*: dae_y$"
    with pytest.raises(UserError, match=message):
        check_settings(json.loads(config.to_json()))


def test_a_refiner_that_is_trained_follows_none():
    settings = make_settings()
    settings["refiner"]["dae_y"]["follows"] = "dae_ytrue"
    with pytest.raises(UserError, match="dae_y.follows is 'dae_ytrue'.* trained"):
        check_settings(settings)


def leave(workdir, *files):
    """What stages leave behind."""
    for file in files:
        (workdir / file).parent.mkdir(parents=True, exist_ok=True)
        (workdir / file).write_bytes(b"")


SEGMENTER = "segmenter/checkpoints/4"
REFINER = "refiners/dae_y/checkpoints/4"
CHOICE = "refiners/dae_y/selection.json"


@pytest.mark.parametrize(
    ("files", "key", "value", "free"),
    [
        ((), "segmenter.training.num_epochs", 3, True),
        ((SEGMENTER,), "segmenter.training.num_epochs", 3, False),
        ((SEGMENTER,), "dataset.options.height", 64, False),
        ((SEGMENTER,), "progress", False, True),
        ((SEGMENTER,), "loader.num_threads", 2, True),
        ((SEGMENTER,), "evaluation.batch_size", 1, False),
        ((SEGMENTER,), "evaluation.sweep_batch_size", 1, True),
        ((SEGMENTER,), "evaluation.num_resamples", 9, True),
        (("segmenter/checkpoints/4.orbax-checkpoint-tmp",), "seed", 3, True),
        ((SEGMENTER,), "refiners", ("dae_y",), True),
        ((SEGMENTER,), "refiner.dae_y.objective.sigma", 0.3, True),
        ((SEGMENTER, REFINER), "refiner.dae_y.objective.sigma", 0.3, False),
        ((SEGMENTER, REFINER), "refiner.dae_ytrue.objective.sigma", 0.3, True),
        ((SEGMENTER, REFINER), "refiner.dae_y.selection.num_iterations", 9, True),
        ((SEGMENTER, REFINER), "refiner.dae_y.title", "another", True),
        ((SEGMENTER, CHOICE), "refiner.dae_y.selection.num_iterations", 9, False),
        ((SEGMENTER, CHOICE), "refiner.dae_y.objective.sigma", 0.3, False),
        ((SEGMENTER, CHOICE), "refiner.dae_y.title", "another", True),
        (("refiners/dense_crf/sweep.jsonl",), "seed", 3, False),
    ],
)
def test_what_shaped_a_result_is_bound_and_nothing_else(
    tmp_path, files, key, value, free
):
    before, after = make_settings(), make_settings(**{key.replace(".", "__"): value})
    keep_settings(tmp_path, before)
    leave(tmp_path, *files)
    if free:
        keep_settings(tmp_path, after)
    else:
        with pytest.raises(UserError, match=f"holds results with config.{key} = "):
            keep_settings(tmp_path, after)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept == (after if free else before)


def test_a_network_that_ran_elsewhere_is_not_trained_end_to_end():
    config = precomputed.get_config()
    config.refiner.dae_y.end_to_end = True
    with pytest.raises(UserError, match="dae_y.end_to_end is True"):
        check_settings(json.loads(config.to_json()))


FRAMES = {"refiner__dae_y__training__inputs": "frames"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"refiner__dae_y__training__inputs": "images"},
            "is 'images'",
        ),
        (
            {"refiner__dae_y__fine_tuning__inputs": "y"},
            "is 'y'",
        ),
        (FRAMES | {"refiner__dae_y__training__jitter": 0.1}, "jitter"),
        (FRAMES | {"refiner__dae_y__end_to_end": True}, "end_to_end is True"),
    ],
)
def test_what_is_computed_once_must_be_wanted_every_time(changes, message):
    check_settings(make_settings(**FRAMES))
    with pytest.raises(
        UserError, match=rf"config.refiner.dae_y.\w+.inputs .*{message}"
    ):
        check_settings(make_settings(**changes))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (precomputed, "the segmenter is 'precomputed'"),
        (released_2017_fc_densenet103, "statistics is 'batch'"),
    ],
)
def test_segmenters_whose_frames_are_not_computed_once(module, message):
    config = module.get_config()
    name = next(n for n in config.refiners if config.refiner[n].name == "dae")
    config.refiner[name].training.inputs = "frames"
    with pytest.raises(UserError, match=f"inputs is 'frames'.*{message}"):
        check_settings(json.loads(config.to_json()))


def test_frames_are_of_one_size():
    settings = make_settings(**FRAMES)
    check_crops(settings, {(32, 48)}, 1)
    with pytest.raises(UserError, match="dae_y.training.inputs is 'frames'.* 2 "):
        check_crops(settings, {(32, 48), (40, 60)}, 1)


def test_a_config_without_the_key_trains_on_crops():
    settings = make_settings()
    del settings["refiner"]["dae_y"]["training"]["inputs"]
    check_settings(settings)
    assert not reads_frames(settings["refiner"]["dae_y"]["training"])


def test_where_the_data_lies_is_free_and_its_scale_is_not(tmp_path):
    camvid = {"path": "a", "source": "folder", "data_dir": "", "scale": 1}
    settings = make_settings()
    settings["dataset"]["options"] = camvid
    keep_settings(tmp_path, settings)
    leave(tmp_path, SEGMENTER)
    camvid |= {"path": "b", "source": "tfds", "data_dir": "c"}
    keep_settings(tmp_path, settings)
    camvid |= {"scale": 2}
    with pytest.raises(UserError, match="config.dataset.options.scale = 1, not 2"):
        keep_settings(tmp_path, settings)


def test_keys_of_another_version_of_the_code_bind_nothing(tmp_path):
    before, after = make_settings(), make_settings()
    del before["segmenter"]["init_from"]
    before["refiner"]["gone"] = before["refiner"]["dae_y"]
    before["removed"] = 3
    keep_settings(tmp_path, before)
    leave(tmp_path, SEGMENTER)
    keep_settings(tmp_path, after)
    after["segmenter"]["training"]["optimizer"]["options"] = {"nesterov": True}
    with pytest.raises(UserError, match="optimizer.options.nesterov = None, not True"):
        keep_settings(tmp_path, after)
