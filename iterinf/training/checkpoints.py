"""Orbax in one place: what a training run keeps on disk."""

import contextlib
import errno
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from iterinf.errors import UserError
from iterinf.runtime.devices import create_replication
from iterinf.runtime.distributed import is_any
from iterinf.runtime.files import create_folder

_METRIC = "monitored"
_ERRORS = (UserError, jax.errors.JaxRuntimeError, MemoryError)  # of a write
_DISK_IS_FULL = "No space left on device"
# How TensorStore's errors begin where what a file holds, or its absence, is at fault.
_DAMAGE = (
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
)


class Progress(NamedTuple):
    """Where a training run stands; plain numbers, kept as JSON."""

    epoch: int = 0  # epochs finished
    best_value: float | None = None  # best monitored value so far
    best_epoch: int = 0  # where it was reached
    finished: bool = False  # patience or epochs are used up


class Checkpoints:
    """The newest and the best checkpoint of a run.

    Each holds two items: `model` (parameters alone, all that inference needs) and
    `train` (optimizer state, step = position in the data, random key, running sums),
    beside two small JSON items, `progress` and the `shapes` of both items' arrays.
    Writing goes on in the background; a write cut off by a kill leaves the checkpoint
    before it untouched.

    Attributes:
      folder: where they lie.
      maximize: whether a larger monitored value is better.
    """

    def __init__(self, folder: pathlib.Path, *, maximize: bool):
        """Opens `folder`, creating it if need be.

        Raises:
          UserError: if it can be neither read nor created.
        """
        self.folder = folder
        self.maximize = maximize
        create_folder(folder)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(1),
                    preservation_policy.BestN(
                        get_metric_fn=self._read_metric, reverse=False, n=1
                    ),
                ]
            ),
            best_fn=self._read_metric,
            best_mode="max",
        )
        with _explain_write_errors(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def _read_metric(self, metrics: dict[str, float]) -> float:
        return metrics[_METRIC]

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None before the first."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        model: Any,
        train: Any,
        progress: Progress,
        value: float | None,
    ) -> None:
        """Writes a checkpoint in the background.

        Args:
          step: number of optimizer steps taken.
          model: pytree of arrays.
          train: pytree of arrays.
          progress: where the run stands.
          value: the monitored value; None in the middle of an epoch, and where it is
            no better than an earlier one.

        Raises:
          UserError: if this or the last write failed, a full disk above all.
        """
        score = -float("inf")
        if value is not None:
            score = float(value) if self.maximize else -float(value)
        with _explain_write_errors(self.folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    train=ocp.args.StandardSave(train),
                    progress=ocp.args.JsonSave(progress._asdict()),
                    shapes=ocp.args.JsonSave(_list_shapes(model=model, train=train)),
                ),
                metrics={_METRIC: score},
            )

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises as `save` does."""
        with _explain_write_errors(self.folder):
            self._manager.wait_until_finished()

    def restore_latest(self, model: Any, train: Any) -> tuple[Any, Any, Progress]:
        """Reads the newest checkpoint into the structure of `model` and `train`.

        Raises:
          UserError: if it holds another model, or another optimizer's state, or is
            damaged.
        """
        step = self._manager.latest_step()
        self._check_shapes(step, model=model, train=train)
        restored = self._restore(
            step,
            model=ocp.args.StandardRestore(_describe(model)),
            train=ocp.args.StandardRestore(_describe(train)),
            progress=ocp.args.JsonRestore(),
        )
        return restored["model"], restored["train"], Progress(**restored["progress"])

    def restore_best(self, model: Any) -> Any:
        """Reads the best model, in the structure of `model`.

        Raises:
          UserError: if there is none, or it is another model or damaged.
        """
        self.wait()
        step = self._manager.best_step()
        if step is None:
            raise UserError(f"{self.folder}: no checkpoint here; train first")
        self._check_shapes(step, model=model)
        item = ocp.args.StandardRestore(_describe(model))
        return self._restore(step, model=item)["model"]

    def _restore(self, step: int | None, **items: Any) -> Any:
        folder = self.folder / str(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            _raise_memory_errors(error)
            reason = _summarise(error)
            if not _is_damage(error):
                raise UserError(
                    f"{folder}: cannot read the checkpoint, which is left as it is: "
                    f"{reason}"
                ) from error
            raise UserError(
                f"{folder}: the checkpoint is damaged: {reason}; remove this folder to "
                "resume from an earlier one, if there is one"
            ) from error

    def _check_shapes(self, step: int | None, **items: Any) -> None:
        """Names the first array by which an item is another model's or optimizer's."""
        shapes = self._restore(step, shapes=ocp.args.JsonRestore())["shapes"]
        found = {path: shapes[path] for path in shapes if path.split("/")[0] in items}
        wanted = _list_shapes(**items)
        for path in sorted(found.keys() | wanted.keys()):
            there, here = found.get(path, "missing"), wanted.get(path, "missing")
            if there != here:
                item, name = path.split("/", 1)
                kind = "model" if item == "model" else "optimizer"
                raise UserError(
                    f"{self.folder}: checkpoint of another {kind}: {name} is {there} "
                    f"there and {here} here"
                )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Waits for the last write and lets the folder go; keeps an earlier error."""
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if lost and jax.process_count() > 1:
            return  # the other processes may be gone, and would be waited for
        with contextlib.suppress(*(_ERRORS if error else [])):
            self.wait()
        self._manager.close()


class Epoch(NamedTuple):
    """The end of an epoch: what `Checkpoints.save` takes."""

    step: int
    model: Any
    train: Any
    progress: Progress
    value: float | None


class CheckpointWriter:
    """Writes the ends of epochs, but where they come fast only some of them.

    Of those between, the best and the last are kept on the devices. They are written
    once enough time has passed, when training ends, and, by a single process, if an
    error ends it: a kill alone costs what was done since the last checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, seconds: float):
        """Writes the first epoch at once.

        Args:
          checkpoints: of the run.
          seconds: at least, between two writes; 0: every epoch is written.
        """
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._written = -float("inf")
        self._waiting: list[Epoch] = []

    def add(self, newest: Epoch) -> None:
        """Takes an epoch, in arrays that will not be donated."""
        best = [epoch for epoch in self._waiting if epoch.value is not None]
        self._waiting = [newest] if newest.value is not None else [*best, newest]

    def is_due(self) -> bool:
        """Whether it is time to write; all processes agree."""
        return is_any(time.monotonic() - self._written >= self._seconds)

    def write(self) -> None:
        """Writes what is waiting; raises as `Checkpoints.save` does."""
        waiting, self._waiting = self._waiting, []
        self._written = time.monotonic()
        for epoch in waiting:
            self._checkpoints.save(*epoch)

    def finish(self) -> None:
        """Writes what is waiting, and waits until it is on disk."""
        self.write()
        self._checkpoints.wait()

    def __enter__(self) -> "CheckpointWriter":
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Writes what an error would lose, where no other process is to agree."""
        if jax.process_count() == 1:
            with contextlib.suppress(*(_ERRORS if error else [])):
                self.write()


@contextlib.contextmanager
def _explain_write_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns a failed write into one message; other errors stay as they are."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        _raise_memory_errors(error)
        reason = "the disk is full" if _is_disk_full(error) else _summarise(error)
        raise UserError(
            f"{folder}: cannot write the checkpoint: {reason}; the one before it is "
            "kept, and the same command resumes from there"
        ) from error


def _raise_memory_errors(error: BaseException) -> None:
    """Raises what a device or Python's memory said, if that is the cause."""
    for cause in _list_causes(error):
        if isinstance(cause, jax.errors.JaxRuntimeError | MemoryError):
            raise cause


def _is_disk_full(error: BaseException) -> bool:
    return any(
        getattr(cause, "errno", None) == errno.ENOSPC or _DISK_IS_FULL in str(cause)
        for cause in _list_causes(error)
    )


def _is_damage(error: Exception) -> bool:
    """Whether files are surely missing or hold something else than was written."""
    kinds = (FileNotFoundError, NotADirectoryError, json.JSONDecodeError)
    return isinstance(error, kinds) or str(error).startswith(_DAMAGE)


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """The error, and those that it was raised from."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _summarise(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def _describe(tree: Any) -> Any:
    """Shapes, dtypes and shardings: Orbax restores into these."""
    sharding = create_replication()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _list_shapes(**items: Any) -> dict[str, list[int]]:
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in leaves
    }
