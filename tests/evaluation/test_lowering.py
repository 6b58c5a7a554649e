"""Training steps and sweeps lower for accelerators, from a machine that has none."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.evaluation.sweep import _count_batches
from iterinf.evaluation.tally import Spec
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.training.loop import create_train_state, make_train_step
from iterinf.training.objectives import make_refiner_loss, propose
from iterinf.training.optimizer import create_optimizer
from iterinf.types import Batch

PLATFORMS = ("tpu", "cuda")


def create_networks(name):
    """A segmenter, a refiner, and the shapes of their variables and of a batch."""
    segmenter = create_segmenter("fcn8", num_classes=11, width=1 / 32, padding="same")
    options = {"dae": {"widths": (4, 6, 8), "features": ("pool2",)}}.get(name, {})
    refiner = create_refiner(name, num_classes=11, **options)
    batch = Batch(np.zeros((2, 32, 48, 3), np.float32), np.zeros((2, 32, 48), np.int32))
    key = jax.random.key(0)
    proposing = jax.eval_shape(segmenter.init, key, batch.image)
    candidate = jax.eval_shape(functools.partial(propose, segmenter), proposing, batch)
    refining = jax.eval_shape(refiner.init, key, candidate)
    return segmenter, refiner, {"segmenter": proposing, "refiner": refining}, batch


def check_lowers(function, *args):
    exported = jax.export.export(function, platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS


@pytest.mark.parametrize("name", ["dae", "context_module", "crf_rnn"])
def test_training_steps_lower(name):
    segmenter, refiner, networks, batch = create_networks(name)
    optimizer = create_optimizer(
        "rmsprop", learning_rate=1e-3, decay_per_epoch=0.9, steps_per_epoch=2
    )
    step = make_train_step(
        make_refiner_loss(segmenter, refiner, start="y", sigma=0.5), optimizer
    )
    params = {"refiner": networks["refiner"]["params"]}
    state = jax.eval_shape(
        lambda: create_train_state(
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params),
            optimizer,
            jax.random.key(0),
        )
    )
    check_lowers(jax.jit(step), state, {"segmenter": networks["segmenter"]}, batch)


@pytest.mark.parametrize("name", ["dae", "context_module", "dense_crf"])
def test_sweeps_lower(name):
    segmenter, refiner, networks, batch = create_networks(name)
    batches = jax.tree.map(lambda x: x[None], batch)
    images = (batches.image * 255).astype(np.uint8)
    spec = Spec(11, 0.05, details=True)
    count = jax.jit(
        functools.partial(_count_batches, segmenter, refiner, 3, spec, 0.0, True, False)
    )
    check_lowers(count, networks, jnp.ones(2), batches._replace(image=images))
