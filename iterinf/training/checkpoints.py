"""Checkpoints of a training run, written with Orbax."""

import contextlib
import operator
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from iterinf.errors import UserError, summarise
from iterinf.runtime.devices import create_replication
from iterinf.runtime.distributed import is_any
from iterinf.runtime.files import create_folder

_METRIC = "monitored"
_read_metric = operator.itemgetter(_METRIC)


class Progress(NamedTuple):
    """The progress of a training run, stored as JSON."""

    epoch: int = 0  # finished epochs
    best_value: float | None = None  # best monitored value so far
    best_epoch: int = 0  # epoch of the best value
    finished: bool = False  # patience or epochs are exhausted


class Epoch(NamedTuple):
    """The state of a training run, at the end of an epoch or within one."""

    step: int  # optimizer steps taken
    model: Any  # parameters, a pytree of arrays: all that inference needs
    train: Any  # optimizer state, key, running sums: a pytree of arrays
    progress: Progress
    is_best: bool  # whether the model is the best so far


class Checkpoints:
    """The latest and the best checkpoint of a run.

    A checkpoint has the items `model` and `train`, and two JSON items, `progress` and
    the `shapes` of all arrays. Writes run in the background; a killed write leaves the
    previous checkpoint intact.

    Writes may have a minimum time between them. The best and the last of the epochs
    since the last write stay on the devices; they are written when the caller asks,
    and, with a single process, on leaving the context, also by an error. A kill loses
    only the epochs since the last write.
    """

    def __init__(self, folder: pathlib.Path, *, seconds: float = 0.0):
        """Opens `folder`, and creates it if necessary.

        Args:
          folder: The folder of the checkpoints.
          seconds: The minimum time between writes; 0 writes every epoch.
        """
        self.folder = folder
        self._seconds = seconds
        self._written = -float("inf")
        self._waiting: list[Epoch] = []
        create_folder(folder)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(1),
                    preservation_policy.BestN(
                        get_metric_fn=_read_metric, reverse=False, n=1
                    ),
                ]
            ),
            best_fn=_read_metric,
            best_mode="max",
        )
        with self._explain_write_errors():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        return self._manager.latest_step()

    def add(self, newest: Epoch) -> None:
        """Adds an epoch to be written, whose arrays must not be donated."""
        best = [epoch for epoch in self._waiting if epoch.is_best]
        self._waiting = [newest] if newest.is_best else [*best, newest]

    def is_due(self) -> bool:
        """Whether a write is due; the same in all processes."""
        return is_any(time.monotonic() - self._written >= self._seconds)

    def write(self) -> None:
        """Writes the waiting epochs in the background.

        Raises:
          UserError: If this or the previous write failed, e.g. on a full disk.
        """
        waiting, self._waiting = self._waiting, []
        self._written = time.monotonic()
        for epoch in waiting:
            self._save(epoch)

    def _save(self, epoch: Epoch) -> None:
        arrays = {"model": epoch.model, "train": epoch.train}
        items = {
            "progress": ocp.args.JsonSave(epoch.progress._asdict()),
            "shapes": ocp.args.JsonSave(_list_shapes(arrays)),
        }
        for name, tree in arrays.items():
            items[name] = ocp.args.StandardSave(tree)
        # The last of the best epochs is the best.
        metrics = {_METRIC: epoch.step if epoch.is_best else -float("inf")}
        with self._explain_write_errors():
            self._manager.save(
                epoch.step, args=ocp.args.Composite(**items), metrics=metrics
            )

    def wait(self) -> None:
        """Waits until all writes are done; raises the same errors as `write`."""
        with self._explain_write_errors():
            self._manager.wait_until_finished()

    def restore_latest(self, model: Any, train: Any) -> tuple[Any, Any, Progress]:
        """Restores the latest checkpoint into the structure of `model` and `train`.

        Raises:
          UserError: If it is damaged, or belongs to another model or optimizer.
        """
        restored = self._restore(self.latest_step, model=model, train=train)
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
        return self._restore(step, model=model)["model"]

    def _restore(self, step: int | None, **trees: Any) -> Any:
        shapes = self._read(step, shapes=ocp.args.JsonRestore())["shapes"]
        self._check_shapes(shapes, trees)
        items = {
            name: ocp.args.StandardRestore(_describe(tree))
            for name, tree in trees.items()
        }
        return self._read(step, progress=ocp.args.JsonRestore(), **items)

    def _read(self, step: int | None, **items: Any) -> Any:
        folder = self.folder / str(step)
        advice = (
            "if its files are damaged, remove this folder to resume from the previous "
            "checkpoint, if any"
        )
        with _explain_errors(f"cannot read checkpoint {folder}", advice):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_shapes(self, shapes: dict[str, Any], trees: dict[str, Any]) -> None:
        """Raises UserError if shapes differ, naming the first such array."""
        found = {path: shapes[path] for path in shapes if path.split("/")[0] in trees}
        wanted = _list_shapes(trees)
        for path in sorted(found.keys() | wanted.keys()):
            there, here = found.get(path, "missing"), wanted.get(path, "missing")
            if there != here:
                item, name = path.split("/", 1)
                kind = "model" if item == "model" else "optimizer"
                raise UserError(
                    f"checkpoint {self.folder} is of another {kind}: {name} is {there} "
                    f"there and {here} here"
                )

    def _explain_write_errors(self) -> contextlib.AbstractContextManager[None]:
        return _explain_errors(
            f"cannot write a checkpoint to {self.folder}",
            "the same command resumes from the previous checkpoint",
        )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Writes the waiting epochs and closes the folder; keeps an earlier error.

        With several processes, the others would have to write too, and may be gone.
        """
        is_alone = jax.process_count() == 1
        if isinstance(error, jax.errors.JaxRuntimeError) and not is_alone:
            return
        with contextlib.suppress(*([Exception] if error else [])):
            if is_alone:
                self.write()
            self.wait()
        self._manager.close()


@contextlib.contextmanager
def _explain_errors(failure: str, advice: str) -> Iterator[None]:
    """Converts Orbax's errors to UserError, unless a device caused them."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        causes = _list_causes(error)
        for cause in causes:
            if isinstance(cause, jax.errors.JaxRuntimeError | MemoryError):
                raise cause from None
        reason = summarise(error)
        if any("No space left on device" in str(cause) for cause in causes):
            reason = "the disk is full"
        raise UserError(f"{failure}: {reason}; {advice}") from error


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """Lists an error and its causes, which may form a cycle."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _describe(tree: Any) -> Any:
    """Returns the shapes, dtypes and shardings into which Orbax restores."""
    sharding = create_replication()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _list_shapes(trees: dict[str, Any]) -> dict[str, list[int]]:
    """Lists the shapes of arrays by path, e.g. model/params/conv1_1/kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in leaves
    }
