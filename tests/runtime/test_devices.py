"""Several devices and processes compute what one device does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.experiment.modes import run
from iterinf.runtime.devices import (
    collect,
    create_sharding,
    replicate_outputs,
    shard,
)
from iterinf.runtime.files import read_arrays
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
CHANGES = {  # eight devices all compute whole batches of 4
    "refiners": ("dae_y",),
    "segmenter.training.batch_size": 8,
    "refiner.dae_y.training.batch_size": 8,
    "refiner.dae_y.selection.damped_step_sizes": (),
    "refiner.dae_y.selection.step_sizes": (1.0,),
    "evaluation.batch_size": 4,
    "evaluation.sweep_batch_size": 4,
    "dataset.options.num_train": 16,
}


def start(workdir, *, num_processes, num_devices, signals_at=-1, mode="run"):
    """Starts the processes; the first gets SIGKILL before a step of its training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in range(num_processes):
        changes = dict(CHANGES)
        if num_processes > 1:
            places = {"coordinator": address, "count": num_processes, "index": index}
            changes |= {f"processes.{key}": places[key] for key in places}
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(-1 if index else signals_at)]
                + ["--config=tests/tiny.py", f"--workdir={workdir}", *flags]
                + [f"--mode={mode}"],
                cwd=ROOT,
                env=os.environ
                | {
                    "JAX_NUM_CPU_DEVICES": str(num_devices),
                    "JAX_COMPILATION_CACHE_DIR": str(
                        jax.config.jax_compilation_cache_dir
                    ),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


DRIVER = """
import os, sys
from iterinf.runtime import signals as interruption
from iterinf import main

last = int(sys.argv.pop(1))
ends_at = interruption.Interruption.ends_at

def counted(self, step):
    if step == last:
        os.kill(os.getpid(), 9)
    return ends_at(self, step)

interruption.Interruption.ends_at = counted
main.main()
"""


def wait(processes):
    """What they said on standard error, in order."""
    return [process.communicate(timeout=300)[1] for process in processes]


def read_metrics(workdir, kind):
    """A kind of number of every epoch: losses, or mean IoU."""
    found = []
    for path in sorted(workdir.rglob("metrics.jsonl")):
        for line in path.read_text().splitlines():
            found += [v for k, v in json.loads(line).items() if k.endswith(kind)]
    return found


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """The workdir of a run in this process, which has one."""
    workdir = tmp_path_factory.mktemp("one")
    config = tiny.get_config()
    config.update_from_flattened_dict(CHANGES)
    run(config, workdir, "evaluate", "")
    return workdir


def check_same(workdir, expected):
    """Rounding moves losses in the seventh digit, and a pixel now and then."""
    for kind, tolerance in (("loss", {"rel": 1e-5}), ("mean_iou", {"abs": 1e-3})):
        found, wanted = (read_metrics(folder, kind) for folder in (workdir, expected))
        assert found == pytest.approx(wanted, **tolerance)
    for name in ("refiners/dae_y/curve.npz", "refiners/dae_y/test.npz"):
        curve, other = (
            read_arrays(folder / name)["mean_iou"] for folder in (workdir, expected)
        )
        np.testing.assert_allclose(curve, other, atol=1e-3)
    plain, other = (
        read_arrays(folder / "segmenter" / "test.npz")["counts"].sum(axis=0)
        for folder in (workdir, expected)
    )
    assert np.abs(plain - other).sum() < 1e-3 * other.sum()


@pytest.mark.slow
def test_eight_devices_are_one(tmp_path, one_device):
    processes = start(tmp_path, num_processes=1, num_devices=8, mode="evaluate")
    errors = wait(processes)
    assert processes[0].returncode == 0, errors
    check_same(tmp_path, one_device)


@pytest.mark.slow
def test_two_processes_are_one_also_if_one_was_killed(tmp_path, one_device):
    processes = start(tmp_path, num_processes=2, num_devices=2, signals_at=3)
    errors = wait(processes)
    assert processes[0].returncode == -signal.SIGKILL
    assert processes[1].returncode not in (0, None)
    assert "lost a peer process" in errors[1] or "another task died" in errors[1]
    processes = start(tmp_path, num_processes=2, num_devices=2)
    first, second = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (first, second)
    assert "mean IoU" in first[0]
    lines = [line for text in second for line in text.splitlines()]
    gloo = ("[Gloo]", "peer ranks")  # printed by several threads, so lines may break
    assert [line for line in lines if not any(word in line for word in gloo)] == []
    check_same(tmp_path, one_device)
    assert (tmp_path / "report.html").exists()
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_one_device_holds_all():
    array = np.arange(24.0).reshape(2, 3, 4)
    sharded = shard({"x": array}, axis=1)["x"]
    assert sharded.sharding == create_sharding(3, axis=1)
    whole = jax.jit(replicate_outputs)(sharded)
    assert whole.is_fully_replicated
    np.testing.assert_array_equal(whole, array)


ON_FOUR_DEVICES = """
import re
import jax, jax.numpy as jnp, numpy as np
from iterinf.runtime.devices import shard, replicate_outputs, use_all_devices
from iterinf.refiners.dense_crf import make_condition, update

assert jax.device_count() == 4

def compute_update(y, image):
    condition = make_condition(jnp.log(y), image, 3.0, 10.0, 13.0)
    return jax.nn.softmax(update(y, condition, 3.0, 10.0))

@jax.jit
def compute(y, image):
    def compute_loss(y):
        updated = compute_update(y, image)
        return jnp.sum(jnp.sin(3 * updated)), updated

    gradient, updated = jax.grad(compute_loss, has_aux=True)(y)
    return updated, gradient

generator = np.random.default_rng(0)
y = generator.dirichlet(np.ones(3), (8, 4, 3)).astype(np.float32)
image = generator.uniform(size=(8, 4, 3, 3)).astype(np.float32)
sharded = shard((y, image))
assert sharded[0].addressable_shards[0].data.shape[0] == 2
with use_all_devices():
    program = compute.lower(*sharded).compile()
    found = jax.jit(replicate_outputs)(program(*sharded))
assert found[0].is_fully_replicated
expected = compute(y, image)
np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
said = re.findall(
    "all-gather|all-reduce|all-to-all|collective-permute", program.as_text()
)
assert not said, said
"""


@pytest.mark.slow
def test_four_devices_share_the_images_of_a_dense_crf():
    """Each goes through its own, and tells the others nothing."""
    subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        check=True,
    )


def test_few_results_are_under_way_at_a_time():
    slow = jax.jit(lambda x: jnp.linalg.matrix_power(x, 9))
    handed_out = []

    def list_results():
        for i in range(10):
            assert sum(not result.is_ready() for result in handed_out) <= 2
            handed_out.append(slow(i * jnp.eye(900)))
            yield handed_out[-1]

    slow(jnp.eye(900)).block_until_ready()
    found = collect(list_results())
    powers = [float(result[0, 0]) for result in found]
    np.testing.assert_allclose(powers, np.arange(10.0) ** 9, rtol=1e-5)
