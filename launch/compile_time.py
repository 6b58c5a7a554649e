"""How long a config's segmenter step takes to compile, from cold and from the cache.

    python -m launch.compile_time --config=configs/camvid_fc_densenet103.py

Two processes, one after the other, share a persistent cache that is empty at first.
Each prints a line of JSON: seconds of tracing and lowering, seconds of compiling.
Nothing is computed.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from iterinf.errors import UserError
from iterinf.segmenters import create_segmenter
from iterinf.training.loop import create_train_state, make_train_step
from iterinf.training.objectives import make_segmenter_loss
from iterinf.training.optimizer import create_optimizer
from iterinf.types import Batch

_NUM_CLASSES = 11

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_CACHE = flags.DEFINE_string("cache", None, "Where it lies; for the processes alone.")


def compile_step(config) -> dict[str, float]:
    """Compiles the training step for its batch and crop size; returns the seconds.

    Raises:
      UserError: if the config trains no segmenter, or on whole images.
    """
    if "training" not in config.segmenter or not config.segmenter.training.crop_size:
        raise UserError("this config trains no segmenter on crops")
    segmenter = create_segmenter(
        config.segmenter.name,
        num_classes=_NUM_CLASSES,
        dtype=jnp.dtype(config.dtype),
        **config.segmenter.model,
    )
    training = config.segmenter.training
    optimizer = create_optimizer(**training.optimizer.to_dict(), steps_per_epoch=36)
    shape = (training.batch_size, *training.crop_size)
    batch = Batch(jnp.zeros((*shape, 3)), jnp.zeros(shape, jnp.int32))
    key = jax.random.key(0)
    params = jax.eval_shape(segmenter.init, key, batch.image)["params"]
    create_state = functools.partial(create_train_state, optimizer=optimizer, key=key)
    state = jax.eval_shape(create_state, params)
    step = make_train_step(make_segmenter_loss(segmenter), optimizer)
    started = time.monotonic()
    lowered = jax.jit(step, donate_argnums=0).lower(state, None, batch)
    traced = time.monotonic()
    lowered.compile()
    compiled = time.monotonic()
    return {"lowering": traced - started, "compiling": compiled - traced}


def _run(argv: list[str]) -> None:
    try:
        _measure()
    except UserError as error:
        sys.exit(f"launch.compile_time: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # it has said why


def _measure() -> None:
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", _CACHE.value)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        print(json.dumps(compile_step(_CONFIG.value)))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.compile_time", *sys.argv[1:]]
        for state in ("cold", "cached"):
            print(state, end=" ", flush=True)
            subprocess.run([*command, f"--cache={folder}"], check=True)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(_run)
