"""One training loop for segmenters and refiners."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from iterinf.errors import UserError
from iterinf.runtime.bars import StepBar
from iterinf.runtime.devices import create_replication, replicate, use_all_devices
from iterinf.runtime.distributed import is_any
from iterinf.runtime.files import append_line, read_lines, write_lines
from iterinf.runtime.profiling import StepTrace
from iterinf.runtime.signals import Interruption, say
from iterinf.training.checkpoints import Checkpoints, Epoch, Progress
from iterinf.training.losses import LossSum
from iterinf.types import Batch

Params: TypeAlias = PyTree[Float[Array, "..."]]
LossFunction: TypeAlias = Callable[[Params, Any, Batch, Key[Array, ""]], LossSum]


_ADVICE = (  # at the end of error messages
    "; the last good checkpoint is kept: lower the learning rate and start a new "
    "workdir"
)


@runtime_checkable
class Batches(Protocol):
    """An endless iterator of batches."""

    def __next__(self) -> Batch:
        """Returns the next batch."""

    def close(self) -> None:
        """Ends threads and closes files."""


class TrainState(NamedTuple):
    """All that changes in a training step."""

    step: Int[Array, ""]  # optimizer steps taken = batches read
    params: Params
    opt_state: optax.OptState
    key: Key[Array, ""]  # constant; a step's randomness is fold_in(key, step)
    sums: LossSum  # over the epoch so far
    first_bad_step: Int[Array, ""]  # step of the first non-finite loss, or -1
    average: Params | None = None  # debiased average of params, if any

    @property
    def model(self) -> Params:
        """The result of training: the average if there is one, else `params`."""
        return self.params if self.average is None else self.average


class Schedule(NamedTuple):
    """The length of a training and its early stopping."""

    num_epochs: int
    steps_per_epoch: int
    patience: int  # epochs without a better monitored value
    monitor: str  # name of the validation metric
    maximize: bool  # whether larger is better


def create_train_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    averaged: bool = False,
) -> TrainState:
    """Creates the state before the first step, optionally with an average of params."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=key,
        sums=LossSum(jnp.zeros(()), jnp.zeros(())),
        first_bad_step=jnp.full((), -1, jnp.int32),
        average=jax.tree.map(jnp.copy, params) if averaged else None,
    )


def make_train_step(
    compute_loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Any, Batch], TrainState]:
    """Makes the pure step (state, frozen, batch) -> state.

    The average of the parameters p, if the state has one, is the debiased exponential
    moving average of `optax.ema(debias=True)`: after t steps of decay d,

      average_t = (1 - d) / (1 - d^t) * sum_i d^(t - i) p_i
                = average_(t-1) + (1 - d) / (1 - d^t) * (p_t - average_(t-1))

    Args:
      compute_loss: A function (params, frozen, batch, key) -> summed loss, whose mean
        is minimised; `frozen` are variables that are not trained.
      optimizer: The optimizer.
      ema_decay: The decay d, in [0, 1).
    """

    def train_step(state: TrainState, frozen: Any, batch: Batch) -> TrainState:
        key = jax.random.fold_in(state.key, state.step)

        def compute_mean(params):
            sums = compute_loss(params, frozen, batch, key)
            return sums.mean, sums

        gradients, sums = jax.grad(compute_mean, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            decay = jnp.float32(ema_decay)
            weight = (1 - decay) / (1 - decay ** (state.step + 1))
            average = optax.incremental_update(params, average, weight)
        bad = (state.first_bad_step < 0) & ~jnp.isfinite(sums.total)
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            key=state.key,
            sums=jax.tree.map(jnp.add, state.sums, sums),
            first_bad_step=jnp.where(bad, state.step, state.first_bad_step),
            average=average,
        )

    return train_step


def drop_epochs(log: pathlib.Path, *, after: int) -> None:
    """Drops the lines of later epochs, which will run again, from metrics.jsonl."""
    lines = read_lines(log)
    write_lines(log, (line for line in lines if json.loads(line)["epoch"] <= after))


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, Any, Batch], TrainState],
    evaluate: Callable[[Params], dict[str, float]],
    make_batches: Callable[[int], Batches],
    folder: pathlib.Path,
    schedule: Schedule,
    *,
    frozen: Any = None,
    title: str,
    trace_steps: int = 0,
    checkpoint_seconds: float = 0.0,
) -> Params:
    """Trains until the epochs or the patience are used up; resumes from a checkpoint.

    Args:
      state: The state before the first step; replaced by a checkpoint in `folder`.
      train_step: The result of `make_train_step`; jitted here, with a donated state.
      evaluate: A function params -> validation metrics, with `schedule.monitor`.
      make_batches: A function n -> the sharded training batches from the n-th on.
      folder: The folder of checkpoints/ and metrics.jsonl (one line per epoch).
      schedule: The epochs and the patience.
      frozen: The second argument of `train_step`.
      title: The title of the progress bar.
      trace_steps: The number of steps to trace, in `folder`/trace.
      checkpoint_seconds: The minimum time between checkpoints of finished epochs.

    Returns:
      The parameters with the best monitored value.

    Raises:
      UserError: If the loss is not finite (names the step), a write failed, or a
        checkpoint is of another model.
      SystemExit: With exit code 0 after SIGTERM, when everything is saved.
    """
    with (
        Checkpoints(folder / "checkpoints", seconds=checkpoint_seconds) as checkpoints,
        Interruption() as interruption,
        contextlib.ExitStack() as stack,
    ):
        progress = Progress()
        if checkpoints.latest_step is None:
            state = replicate(state)
        else:
            state, progress = _restore(checkpoints, state)
        if not progress.finished:
            first, log = int(state.step), folder / "metrics.jsonl"
            drop_epochs(log, after=progress.epoch)
            epochs = _Epochs(
                state=state,
                progress=progress,
                step=_compile(train_step, frozen),
                evaluate=evaluate,
                schedule=schedule,
                batches=stack.enter_context(contextlib.closing(make_batches(first))),
                checkpoints=checkpoints,
                log=log,
                trace=stack.enter_context(
                    contextlib.closing(StepTrace(folder / "trace", trace_steps))
                ),
                bar=StepBar(
                    title,
                    total=schedule.num_epochs * schedule.steps_per_epoch,
                    initial=first,
                ),
                interruption=interruption,
            )
            del state  # its arrays need not outlive the first epoch
            state = epochs.run()
        return checkpoints.restore_best({"params": state.model})["params"]


@dataclasses.dataclass
class _Epochs:
    """A training in progress."""

    state: TrainState
    progress: Progress
    step: Callable[[TrainState, Batch], tuple[TrainState, Array]]
    evaluate: Callable[[Params], dict[str, float]]
    schedule: Schedule
    batches: Batches
    checkpoints: Checkpoints
    log: pathlib.Path
    trace: StepTrace
    bar: StepBar
    interruption: Interruption

    def run(self) -> TrainState:
        """Trains until the epochs or the patience are used up."""
        while not self.progress.finished:
            self._run_epoch()
        self.bar.close()
        return self.state

    def _run_epoch(self) -> None:
        """Trains for the rest of an epoch, validates and logs."""
        started = time.monotonic()
        waited = self._train()
        trained = time.monotonic()
        loss = _check_loss(self.state)
        metrics = {"train/loss": loss, **self.evaluate(self.state.model)}
        _check_metrics(metrics, self.progress.epoch + 1)
        value = metrics[self.schedule.monitor]
        self.progress = _advance(self.progress, value, self.schedule)
        seconds = {
            "seconds": round(time.monotonic() - started, 2),
            "seconds_waiting_for_data": round(waited, 3),
        }
        record = {"epoch": self.progress.epoch, **metrics, **seconds}
        append_line(self.log, json.dumps(record))
        self.bar.end_epoch(
            time.monotonic() - trained, **{self.schedule.monitor: f"{value:.4f}"}
        )
        sums = jax.tree.map(jnp.zeros_like, self.state.sums)
        self.state = self.state._replace(sums=sums)
        self._add(is_best=self.progress.best_epoch == self.progress.epoch)
        if is_any(self.interruption.requested):
            self._save_and_exit(int(self.state.step))
        if self.progress.finished or self.checkpoints.is_due():
            self.checkpoints.write()

    def _train(self) -> float:
        """Steps to the end of the epoch; returns the seconds waited for batches."""
        waited = 0.0
        # The waiting checkpoints hold the arrays of this state, which is donated.
        self.state = jax.tree.map(jnp.copy, self.state)
        end = (self.progress.epoch + 1) * self.schedule.steps_per_epoch
        for step in range(int(self.state.step), end):
            if self.interruption.ends_at(step):
                _check_loss(self.state)
                self._add(is_best=False)
                self._save_and_exit(step)
            self.trace.advance(self.state.step)
            asked = time.monotonic()
            batch = next(self.batches)
            waited += time.monotonic() - asked
            with use_all_devices():
                self.state, done = self.step(self.state, batch)
            self.bar.add(done)
        self.bar.wait()
        return waited

    def _add(self, *, is_best: bool) -> None:
        step, (model, rest) = int(self.state.step), _split(self.state)
        self.checkpoints.add(Epoch(step, model, rest, self.progress, is_best))

    def _save_and_exit(self, step: int) -> NoReturn:
        self.checkpoints.write()
        self.checkpoints.wait()
        say(f"SIGTERM: saved at step {step}; the same command resumes")
        raise SystemExit(0)


def _compile(
    train_step: Callable[[TrainState, Any, Batch], TrainState], frozen: Any
) -> Callable[[TrainState, Batch], tuple[TrainState, Array]]:
    """Jits a step with a donated state; adds an output that is never donated."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=create_replication())
    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Array]:
        state = train_step(state, frozen, batch)
        return state, state.step

    return lambda state, batch: step(state, frozen, batch)


def _check_loss(state: TrainState) -> float:
    """Returns the mean loss of the epoch so far if it is finite."""
    bad_step = int(state.first_bad_step)
    if bad_step >= 0:
        raise UserError(f"the loss is not finite at step {bad_step}{_ADVICE}")
    return float(state.sums.mean)


def _check_metrics(metrics: Mapping[str, float], epoch: int) -> None:
    """Raises UserError before parameters that are not finite are saved."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{name} is {value} after epoch {epoch}{_ADVICE}")


def _advance(progress: Progress, value: float, schedule: Schedule) -> Progress:
    """Returns the progress after an epoch with this monitored value."""
    epoch, best = progress.epoch + 1, progress.best_value
    better = best is None or (value > best if schedule.maximize else value < best)
    if better:
        progress = progress._replace(best_value=value, best_epoch=epoch)
    waited = epoch - progress.best_epoch
    finished = epoch >= schedule.num_epochs or waited >= schedule.patience
    return progress._replace(epoch=epoch, finished=finished)


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a state into the items `model` and `train` of a checkpoint."""
    name = "params" if state.average is None else "average"
    without: dict[str, Any] = {name: None}
    return {"params": state.model}, {"rest": state._replace(**without)}


def _restore(
    checkpoints: Checkpoints, state: TrainState
) -> tuple[TrainState, Progress]:
    model, train, progress = checkpoints.restore_latest(*_split(state))
    restored = {"params" if state.average is None else "average": model["params"]}
    return train["rest"]._replace(**restored), progress
