"""Every config builds its networks, in shapes, and knows only base's keys."""

import dataclasses
import functools
import importlib
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import base
from iterinf.config import check_settings, list_trained
from iterinf.data import DATASETS
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.training.objectives import make_refiner_loss, propose, set_scalars
from iterinf.training.optimizer import create_optimizer
from iterinf.types import Batch
from launch.grid import expand_grid

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


GRIDS = [
    name
    for name in NAMES
    if hasattr(importlib.import_module(f"configs.{name}"), "grid")
]


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


def list_keys(tree, prefix=""):
    """All keys but those that a data set, a network or an optimizer chooses itself."""
    if not isinstance(tree, dict) or prefix.endswith((".options", ".model")):
        return {prefix}
    return set().union(*(list_keys(v, f"{prefix}.{k}") for k, v in tree.items()))


@pytest.mark.parametrize("name", NAMES)
def test_has_the_keys_of_base(name):
    expected = base.get_config()
    if name == "precomputed":
        expected.segmenter = base.create_precomputed()
    config = load(name)
    for key in set(config.refiner) - set(expected.refiner):  # of a known kind
        kinds = {known.name: known for known in expected.refiner.values()}
        expected.refiner[key] = kinds[config.refiner[key].name]
    assert list_keys(config.to_dict()) == list_keys(expected.to_dict())


def list_options(network):
    """What a config says of a network; the rest follows from data and hardware."""
    others = {"num_classes", "feature_offset", "dtype", "parent", "name"}
    return {field.name for field in dataclasses.fields(network)} - others


def make_batch(config, size):
    """An image of this size; with probabilities, if the segmenter reads them."""
    outputs = {"probabilities": jnp.ones((1, *size, 11)) / 11}
    is_read = config.segmenter.name == "precomputed"
    label = jnp.zeros((1, *size), jnp.int32)
    return Batch(jnp.zeros((1, *size, 3)), label, outputs if is_read else {})


def make_segmenter(config):
    return create_segmenter(
        config.segmenter.name, num_classes=11, **config.segmenter.model
    )


def find_first(name):
    """The first config with this one's segmenter: what it gives is found out once."""
    segmenter = make_segmenter(load(name))
    return next(other for other in NAMES if make_segmenter(load(other)) == segmenter)


@functools.cache
def describe_variables(name):
    config = load(name)
    batch = make_batch(config, (224, 224))
    initialise = functools.partial(make_segmenter(config).init, jax.random.key(0))
    return jax.eval_shape(initialise, batch.image, **batch.outputs)


@functools.cache
def describe_proposal(name, crop_size):
    config = load(name)
    return jax.eval_shape(
        functools.partial(propose, make_segmenter(config)),
        describe_variables(name),
        make_batch(config, crop_size),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    config = load(name).lock()
    segmenter = make_segmenter(config)
    assert list_options(segmenter) == set(config.segmenter.model)
    assert config.refiners
    for settings in (config.refiner[refiner] for refiner in config.refiners):
        crop_size = (64, 64)
        if "training" in settings:
            crop_size = settings.training.crop_size
        candidate = describe_proposal(find_first(name), crop_size)
        assert candidate.y.shape == (1, *crop_size, 11)
        refiner = create_refiner(
            settings.name,
            num_classes=11,
            feature_offset=segmenter.feature_offset,
            **settings.model,
        )
        assert list_options(refiner) == set(settings.model)
        reconstruction, weights = jax.eval_shape(
            refiner.init_with_output, jax.random.key(0), candidate
        )
        assert reconstruction.shape == (1, *crop_size, 11)
        set_scalars(
            {"refiner": weights}, dict.fromkeys(settings.selection.parameters, 1.0)
        )
        if "training" in settings:
            make_refiner_loss(segmenter, refiner, **settings.objective)


@pytest.mark.parametrize("name", NAMES)
def test_trains_by_known_names(name):
    config = load(name)
    for network in list_trained(config).values():
        training = network.training
        optimizer = create_optimizer(**training.optimizer.to_dict(), steps_per_epoch=1)
        assert callable(optimizer.update)
        assert training.monitor in ("validation/loss", "validation/mean_iou")
    check_settings(json.loads(config.to_json()))
    parameters = inspect.signature(DATASETS[config.dataset.name]).parameters
    assert set(config.dataset.options) == set(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_refiners_of_a_table_differ_in_scenario_alone(name):
    """Fair fights: DAE(y) and DAE(y_true) share network, optimizer and schedule."""
    refiner = load(name).refiner
    first, second = refiner.dae_y, refiner.dae_ytrue
    assert first.model == second.model
    assert first.training == second.training
    changed = {k for k, v in first.objective.items() if v != second.objective[k]}
    assert changed in ({"start", "sigma"}, {"start"})


@pytest.mark.parametrize("name", GRIDS)
def test_its_grid_expands(name):
    runs = expand_grid(FOLDER / f"{name}.py")
    assert len({run.name for run in runs}) > 1


def test_a_misspelt_key_is_refused():
    config = load("base").lock()
    with pytest.raises(AttributeError):
        config.segmentor = {}
