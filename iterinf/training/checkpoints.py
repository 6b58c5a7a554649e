"""Checkpoints of a training run, written with Orbax."""

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
# Prefixes of TensorStore's errors about missing or damaged files.
_DAMAGE = (
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
)


class Progress(NamedTuple):
    """The progress of a training run, stored as JSON."""

    epoch: int = 0  # finished epochs
    best_value: float | None = None  # best monitored value so far
    best_epoch: int = 0  # epoch of the best value
    finished: bool = False  # patience or epochs are exhausted


class Checkpoints:
    """The latest and the best checkpoint of a run.

    A checkpoint has the items `model` (the parameters, all that inference needs) and
    `train` (optimizer state, step, random key, running sums), and two JSON items,
    `progress` and the `shapes` of all arrays. Writes run in the background; a killed
    write leaves the previous checkpoint intact.

    Attributes:
      folder: The folder of the checkpoints.
      maximize: Whether a larger monitored value is better.
    """

    def __init__(self, folder: pathlib.Path, *, maximize: bool):
        """Opens `folder`, and creates it if necessary."""
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
        """The step of the latest checkpoint, or None."""
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
          step: The number of optimizer steps taken.
          model: The model, a pytree of arrays.
          train: The training state, a pytree of arrays.
          progress: The progress of the run.
          value: The monitored value; None within an epoch, or if it is not the best.

        Raises:
          UserError: If this or the previous write failed, e.g. on a full disk.
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
        """Waits until all writes are done; raises the same errors as `save`."""
        with _explain_write_errors(self.folder):
            self._manager.wait_until_finished()

    def restore_latest(self, model: Any, train: Any) -> tuple[Any, Any, Progress]:
        """Restores the latest checkpoint into the structure of `model` and `train`.

        Raises:
          UserError: If it is damaged, or belongs to another model or optimizer.
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
        """Restores the best model into the structure of `model`.

        Raises:
          UserError: If there is none, or it is damaged or belongs to another model.
        """
        self.wait()
        step = self._manager.best_step()
        if step is None:
            raise UserError(f"no checkpoint in {self.folder}; train the network first")
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
                    f"cannot read checkpoint {folder} (left unchanged): {reason}"
                ) from error
            raise UserError(
                f"checkpoint {folder} is damaged: {reason}; remove this folder to "
                "resume from the previous checkpoint, if any"
            ) from error

    def _check_shapes(self, step: int | None, **items: Any) -> None:
        """Raises UserError if shapes differ, naming the first such array."""
        shapes = self._restore(step, shapes=ocp.args.JsonRestore())["shapes"]
        found = {path: shapes[path] for path in shapes if path.split("/")[0] in items}
        wanted = _list_shapes(**items)
        for path in sorted(found.keys() | wanted.keys()):
            there, here = found.get(path, "missing"), wanted.get(path, "missing")
            if there != here:
                item, name = path.split("/", 1)
                kind = "model" if item == "model" else "optimizer"
                raise UserError(
                    f"checkpoint {self.folder} is of another {kind}: {name} is {there} "
                    f"there and {here} here"
                )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Waits for the last write and closes the folder; keeps an earlier error."""
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if lost and jax.process_count() > 1:
            return  # waiting for other processes, which may be gone, would hang
        with contextlib.suppress(*(_ERRORS if error else [])):
            self.wait()
        self._manager.close()


class Epoch(NamedTuple):
    """The state at the end of an epoch, the arguments of `Checkpoints.save`."""

    step: int
    model: Any
    train: Any
    progress: Progress
    value: float | None


class CheckpointWriter:
    """Writes checkpoints of epochs, with a minimum time between writes.

    The best and the last of the epochs in between are kept on the devices, and written
    when enough time has passed, when training ends and, with a single process, on an
    error. A kill loses only the epochs since the last checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, seconds: float):
        """Creates a writer, which writes the first epoch immediately.

        Args:
          checkpoints: The checkpoints of the run.
          seconds: The minimum time between writes; 0 writes every epoch.
        """
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._written = -float("inf")
        self._waiting: list[Epoch] = []

    def add(self, newest: Epoch) -> None:
        """Adds an epoch, whose arrays must not be donated."""
        best = [epoch for epoch in self._waiting if epoch.value is not None]
        self._waiting = [newest] if newest.value is not None else [*best, newest]

    def is_due(self) -> bool:
        """Whether a write is due; the same in all processes."""
        return is_any(time.monotonic() - self._written >= self._seconds)

    def write(self) -> None:
        """Writes the waiting epochs; raises the errors of `Checkpoints.save`."""
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
        """Writes the waiting epochs, unless other processes would have to agree."""
        if jax.process_count() == 1:
            with contextlib.suppress(*(_ERRORS if error else [])):
                self.write()


@contextlib.contextmanager
def _explain_write_errors(folder: pathlib.Path) -> Iterator[None]:
    """Converts errors of a write to UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        _raise_memory_errors(error)
        reason = "the disk is full" if _is_disk_full(error) else _summarise(error)
        raise UserError(
            f"cannot write a checkpoint to {folder}: {reason}; the same command "
            "resumes from the previous checkpoint"
        ) from error


def _raise_memory_errors(error: BaseException) -> None:
    """Re-raises an out-of-memory or device error that caused this one."""
    for cause in _list_causes(error):
        if isinstance(cause, jax.errors.JaxRuntimeError | MemoryError):
            raise cause


def _is_disk_full(error: BaseException) -> bool:
    return any(
        getattr(cause, "errno", None) == errno.ENOSPC or _DISK_IS_FULL in str(cause)
        for cause in _list_causes(error)
    )


def _is_damage(error: Exception) -> bool:
    """Whether an error means that files are missing or damaged."""
    kinds = (FileNotFoundError, NotADirectoryError, json.JSONDecodeError)
    return isinstance(error, kinds) or str(error).startswith(_DAMAGE)


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """Lists an error and its causes."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _summarise(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def _describe(tree: Any) -> Any:
    """Returns the shapes, dtypes and shardings into which Orbax restores."""
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
