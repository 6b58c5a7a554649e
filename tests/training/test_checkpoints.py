"""Checkpoints: round trip, other models, full disks, and kills inside a write."""

import contextlib
import errno
import pathlib
import resource
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iterinf.errors import UserError
from iterinf.training.checkpoints import Checkpoints, Epoch, Progress, _explain_errors

# When a write fails, other parts of it end after Orbax has closed its event loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)
ROOT = pathlib.Path(__file__).parents[2]


def make_model(step, size=5):
    """Parameters that tell their step, and that no compression makes small."""
    kernel = np.random.default_rng(step).normal(size=(size, 2)).astype(np.float32)
    return {"params": {"layer": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(2)}}}


def make_train(step):
    """Optimizer state, step and key."""
    params = make_model(step)["params"]
    return {
        "opt_state": optax.adam(1e-3).init(params),
        "step": jnp.asarray(step, jnp.int32),
        "key": jax.random.key(step),
    }


def save(checkpoints, step, is_best=True, size=5):
    """Saves what belongs to a step, and waits for it."""
    progress = Progress(epoch=step, best_value=0.1 * step)
    model, train = make_model(step, size), make_train(step)
    checkpoints.add(Epoch(step, model, train, progress, is_best))
    checkpoints.write()
    checkpoints.wait()


def assert_equal(actual, expected):
    """Two trees are equal to the bit, random keys included."""

    def unwrap(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(unwrap(a), unwrap(b)),
        actual,
        expected,
    )


def assert_holds(folder, step, size=5):
    """The newest checkpoint is that of a step, whole."""
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step == step
        model, train, progress = checkpoints.restore_latest(
            make_model(0, size), make_train(0)
        )
    assert_equal(model, make_model(step, size))
    assert_equal(train, make_train(step))
    assert progress == Progress(epoch=step, best_value=0.1 * step)


def test_a_round_trip_keeps_every_bit(tmp_path):
    with Checkpoints(tmp_path / "a" / "b") as checkpoints:
        assert checkpoints.latest_step is None
        save(checkpoints, 7)
    assert_holds(tmp_path / "a" / "b", 7)


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, is_best in enumerate((True, True, False, True, False), start=1):
            save(checkpoints, step, is_best)
        assert_equal(checkpoints.restore_best(make_model(0)), make_model(4))
    kept = {p.name for p in tmp_path.iterdir() if p.name.isdigit()}
    assert kept == {"4", "5"}
    assert_holds(tmp_path, 5)


def test_without_a_checkpoint_there_is_no_best(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=rf"no checkpoint in {tmp_path}"),
    ):
        checkpoints.restore_best(make_model(0))


@pytest.mark.parametrize("which", ["latest", "best"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kernel": (5, 3)},
            r"params/layer/kernel is \[5, 2\] there and \[5, 3\] here",
        ),
        ({"bias": None}, r"params/layer/bias is \[2\] there and missing here"),
        ({"scale": (2,)}, r"params/layer/scale is missing there and \[2\] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, which, change, message):
    shapes = {"kernel": (5, 2), "bias": (2,)} | change
    layer = {name: jnp.zeros(shape) for name, shape in shapes.items() if shape}
    model = {"params": {"layer": layer}}
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        restore = {
            "latest": lambda: checkpoints.restore_latest(model, make_train(0)),
            "best": lambda: checkpoints.restore_best(model),
        }[which]
        with pytest.raises(UserError, match=f"{tmp_path}.*another model: {message}"):
            restore()
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize("item", ["model", "train", "progress", "shapes"])
def test_a_damaged_checkpoint_is_named(tmp_path, item):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    for path in (tmp_path / "1" / item).rglob("*"):
        if path.is_file():
            path.write_bytes(b"not what it was")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore_latest(make_model(0), make_train(0))
    message = str(caught.value)
    assert message.startswith(f"cannot read checkpoint {tmp_path}/1: ")
    assert "damaged" in message
    assert "\n" not in message


def chain(error, cause):
    """An error that comes from another one."""
    error.__cause__ = cause
    return error


def fail(error):
    """Fails as Orbax may."""
    with _explain_errors("cannot write", "try again"):
        raise error


FULL = "No space left on device"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        ValueError(f"RESOURCE_EXHAUSTED: Failed to write: {FULL} [os_error_code='28']"),
        chain(RuntimeError("the writer failed"), OSError(errno.ENOSPC, FULL)),
    ],
    ids=["python", "tensorstore", "chained"],
)
def test_a_full_disk_is_told_as_such(error):
    with pytest.raises(UserError, match="^cannot write: the disk is full; try again$"):
        fail(error)


@pytest.mark.parametrize("chained", [False, True])
def test_an_accelerator_out_of_memory_is_no_disk_and_no_damage(chained):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        fail(chain(ValueError("the writer failed"), error) if chained else error)


def test_a_bug_is_not_called_damage():
    with pytest.raises(TypeError):
        fail(TypeError("restore() got an unexpected keyword argument"))


@contextlib.contextmanager
def limit_file_size(size):
    """Lets no file grow beyond some bytes; as on a full disk, the writer fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    size = 100_000
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, size=size)
        with (
            limit_file_size(100_000),
            pytest.raises(UserError, match=f"cannot write .*{tmp_path}"),
        ):
            save(checkpoints, 2, size=size)
    assert_holds(tmp_path, 1, size)


def run_script(script, *arguments, prefix=()):
    """Runs Python code in its own process, this module's names at hand."""
    header = "from tests.training.test_checkpoints import *\nimport os, signal, sys\n"
    return subprocess.run(
        [*prefix, sys.executable, "-c", header + textwrap.dedent(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_disk_that_is_really_full(tmp_path):
    """One checkpoint of 800 kB fits, a second one does not."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(tmp_path)]
    for flags in ("-m", "-rm"):
        with contextlib.suppress(FileNotFoundError):
            if not subprocess.run(
                ["unshare", flags, *mount], capture_output=True
            ).returncode:
                break
    else:
        pytest.skip("no small disk to fill: this system lets nobody mount one")
    script = """
        folder, size = pathlib.Path(sys.argv[1]) / "run", 100_000
        try:
            with Checkpoints(folder) as checkpoints:
                save(checkpoints, 1, size=size)
                save(checkpoints, 2, size=size)
        except UserError as error:
            print(error)
        assert_holds(folder, 1, size)
        print("held")
    """
    enter = ["unshare", flags, "sh", "-c", f'{" ".join(mount)} && exec "$@"', "sh"]
    done = run_script(script, str(tmp_path), prefix=enter)
    message, held = done.stdout.splitlines()
    assert "disk is full" in message
    assert held == "held"


@pytest.mark.parametrize(
    ("side", "call", "held"), [("before", 1, 1), ("before", 6, 1), ("after", 6, 2)]
)
def test_killed_inside_a_write_the_checkpoint_before_it_is_left(
    tmp_path, side, call, held
):
    """A write ends in six renames, of its items and then of the whole."""
    script = """
        folder, moment = pathlib.Path(sys.argv[1]), (sys.argv[2], int(sys.argv[3]))
        rename, calls = os.rename, []

        def die_at(side):
            if (side, len(calls)) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def rename_and_die(source, target, **options):
            calls.append(target)
            die_at("before")
            rename(source, target, **options)
            die_at("after")

        with Checkpoints(folder) as checkpoints:
            save(checkpoints, 1)
            os.rename = rename_and_die
            save(checkpoints, 2)
    """
    done = run_script(script, str(tmp_path), side, str(call))
    assert done.returncode == -9, done.stderr
    assert list(tmp_path.glob("2*"))
    assert_holds(tmp_path, held)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3)
    assert_holds(tmp_path, 3)
