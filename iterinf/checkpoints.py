"""Orbax in one place: what a training run keeps on disk."""

import errno
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from iterinf.errors import UserError

_METRIC = "monitored"


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
    beside a small JSON `progress`. Writing goes on in the background; a write cut
    off by a kill leaves the checkpoint before it untouched.

    Attributes:
      folder: where they lie.
      maximize: whether a larger monitored value is better.
    """

    def __init__(self, folder: pathlib.Path, *, maximize: bool):
        """Opens `folder`, creating it if need be."""
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.folder = folder
        self.maximize = maximize
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
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
            ),
        )

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
          value: the monitored value, None in the middle of an epoch.

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
          UserError: if it holds another model.
        """
        step = self._manager.latest_step()
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
          UserError: if there is none, or it is another model.
        """
        step = self._manager.best_step()
        if step is None:
            raise UserError(f"{self.folder}: no checkpoint here; train first")
        item = ocp.args.StandardRestore(_describe(model))
        return self._restore(step, model=item)["model"]

    def _restore(self, step: int | None, **items: Any) -> Any:
        self._check_shapes(step, items["model"].item)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_shapes(self, step: int | None, wanted: Any) -> None:
        """Names the first array by which the checkpoint is another model's."""
        found = self._manager.item_metadata(step)["model"]
        shapes = _list_shapes(getattr(found, "tree", found))
        for path, shape in _list_shapes(wanted).items():
            if shapes.get(path) != shape:
                raise UserError(
                    f"{self.folder}: checkpoint of another model: {path} is "
                    f"{shapes.get(path, 'missing')} there and {shape} here"
                )

    def close(self) -> None:
        """Waits for the last write and lets the folder go."""
        self.wait()
        self._manager.close()


class _explain_write_errors:  # noqa: N801 (a context manager, used as a verb)
    """Turns a failed write into one sentence."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        reason = "the disk is full" if _is_disk_full(error) else str(error)
        raise UserError(
            f"{self.folder}: cannot write the checkpoint: {reason}; the one before it "
            "is kept, and the same command goes on from there"
        ) from error


def _is_disk_full(error: BaseException) -> bool:
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return any(
        getattr(cause, "errno", None) == errno.ENOSPC
        or "No space left on device" in str(cause)
        or "RESOURCE_EXHAUSTED" in str(cause)
        for cause in causes
    )


def _describe(tree: Any) -> Any:
    """Shapes, dtypes and shardings: Orbax restores into these."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _list_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in leaves
    }
