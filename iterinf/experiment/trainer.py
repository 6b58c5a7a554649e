"""Training of a network in its phases: on crops, then on whole images."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from iterinf.config import reads_frames
from iterinf.data import Split
from iterinf.data.loader import make_train_batches
from iterinf.runtime.devices import ShardedBatches, replicate
from iterinf.runtime.xla import compile_for_once
from iterinf.training.loop import (
    LossFunction,
    Params,
    Schedule,
    create_train_state,
    fit,
    make_train_step,
)
from iterinf.training.optimizer import create_optimizer


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The settings that all trainings of an experiment share.

    Attributes:
      split: The training split.
      seed: The seed of initialisation, steps, order of images, and crops.
      num_threads: The number of threads that read batches.
      trace_steps: The steps to trace in each phase, see `iterinf.runtime.profiling`.
      checkpoint_seconds: The minimum time between checkpoints.
      open_frames: A function that returns the split of phases with `inputs` "frames";
        called if such a phase has steps to go.
    """

    split: Split
    _: dataclasses.KW_ONLY
    seed: int
    num_threads: int
    trace_steps: int
    checkpoint_seconds: float
    open_frames: Callable[[], Split] | None = None

    def initialise(self, network: nn.Module, inputs: Any) -> Params:
        """A network's parameters before training."""
        key, _ = self._split_key()
        return replicate(compile_for_once(network.init)(key, inputs).get("params", {}))

    def _split_key(self) -> Key[Array, "2"]:
        """The keys of initialisation and of training steps."""
        return jax.random.split(jax.random.key(self.seed))

    def fit(
        self,
        params: Params,
        compute_loss: LossFunction,
        validate: Any,
        folder: pathlib.Path,
        settings: ConfigDict,
        *,
        frozen: Any = None,
    ) -> Params:
        """Trains in the phases of a network's settings; resumes from checkpoints.

        Args:
          params: The initial parameters.
          compute_loss: See `iterinf.training.loop.make_train_step`.
          validate: A function params -> metrics.
          folder: The network's folder; fine_tuning/ holds the second phase.
          settings: The network's part of the config.
          frozen: The second argument of `compute_loss`.

        Returns:
          The best parameters of the last phase.
        """
        _, step_key = self._split_key()
        fit_phase = functools.partial(
            self._fit_phase, step_key, compute_loss, validate, frozen=frozen
        )
        params = fit_phase(
            params, settings.training, folder, title=f"training {settings.title}"
        )
        if settings.fine_tuning.num_epochs:
            params = fit_phase(
                params,
                settings.fine_tuning,
                folder / "fine_tuning",
                title=f"fine-tuning {settings.title}",
            )
        return params

    def _fit_phase(
        self,
        step_key: Any,
        compute_loss: LossFunction,
        validate: Any,
        params: Params,
        training: ConfigDict,
        folder: pathlib.Path,
        *,
        frozen: Any,
        title: str,
    ) -> Params:
        optimizer = self.create_optimizer(training)
        return fit(
            create_train_state(
                params, optimizer, step_key, averaged=training.ema_decay > 0
            ),
            make_train_step(compute_loss, optimizer, ema_decay=training.ema_decay),
            validate,
            functools.partial(self.make_batches, training),
            folder,
            Schedule(
                num_epochs=training.num_epochs,
                steps_per_epoch=self.count_steps(training),
                patience=training.patience,
                monitor=training.monitor,
                maximize=not training.monitor.endswith("loss"),
            ),
            frozen=frozen,
            title=title,
            trace_steps=self.trace_steps,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def count_steps(self, training: ConfigDict) -> int:
        """Optimizer steps in an epoch."""
        return max(1, len(self.split) // training.batch_size)

    def create_optimizer(self, training: ConfigDict) -> optax.GradientTransformation:
        """The optimizer of a phase."""
        return create_optimizer(
            **training.optimizer.to_dict(), steps_per_epoch=self.count_steps(training)
        )

    def make_batches(self, training: ConfigDict, first_batch: int) -> ShardedBatches:
        """Returns a phase's sharded batches from the n-th on, to be closed."""
        split = self.split
        if self.open_frames and reads_frames(training):
            split = self.open_frames()
        batches = make_train_batches(
            split,
            batch_size=training.batch_size,
            crop_size=training.crop_size,
            flip_probability=training.flip_probability,
            jitter=training.jitter,
            seed=self.seed,
            num_threads=self.num_threads,
            first_batch=first_batch,
            process=jax.process_index(),
            num_processes=jax.process_count(),
        )
        return ShardedBatches(batches, training.batch_size)
