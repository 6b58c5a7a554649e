"""Every config builds its networks, in shapes, and knows only base's keys."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import base
from iterinf.objectives import propose
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.training import create_optimizer

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


def list_keys(tree, prefix=""):
    """All keys but those that a data set or an optimizer chooses itself."""
    if not isinstance(tree, dict) or prefix.endswith(".options"):
        return {prefix}
    return set().union(*(list_keys(v, f"{prefix}.{k}") for k, v in tree.items()))


@pytest.mark.parametrize("name", NAMES)
def test_has_the_keys_of_base(name):
    assert list_keys(load(name).to_dict()) == list_keys(base.get_config().to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    config = load(name)
    segmenter = create_segmenter(
        config.segmenter.name, num_classes=11, **config.segmenter.model
    )
    key = jax.random.key(0)
    for refiner_name in config.refiners:
        settings = config.refiner[refiner_name]
        images = jnp.zeros((1, *settings.training.crop_size, 3))
        variables = jax.eval_shape(segmenter.init, key, images)
        candidate = jax.eval_shape(
            functools.partial(propose, segmenter), variables, images
        )
        refiner = create_refiner(
            settings.name,
            num_classes=11,
            feature_offset=segmenter.feature_offset,
            **settings.model,
        )
        weights = jax.eval_shape(refiner.init, key, candidate)
        assert jax.eval_shape(refiner.apply, weights, candidate).shape == (
            *images.shape[:3],
            11,
        )
        for training in (config.segmenter.training, settings.training):
            assert training.monitor in ("validation/loss", "validation/mean_iou")
            create_optimizer(**training.optimizer.to_dict(), steps_per_epoch=1)


def test_a_misspelt_key_is_refused():
    config = load("base").lock()
    with pytest.raises(AttributeError):
        config.segmentor = {}
