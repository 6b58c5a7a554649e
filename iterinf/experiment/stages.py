"""The stages of an experiment; each resumes from the workdir."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iterinf.config import (
    check_crops,
    check_settings,
    find_followed,
    list_trained,
    reads_frames,
)
from iterinf.data import (
    Dataset,
    check_dataset,
    create_dataset,
    describe_dataset,
)
from iterinf.data.augment import crop_randomly
from iterinf.data.dataset import stack_records
from iterinf.data.external import add_outputs, find_stride
from iterinf.data.frequencies import compute_median_frequency_weights
from iterinf.data.summary import SplitSummary, count_records
from iterinf.errors import UserError
from iterinf.evaluation.chain import Chain
from iterinf.experiment.trainer import Trainer
from iterinf.ops.metrics import compute_mean_iou, confusion_matrix
from iterinf.prediction.pipeline import (
    build_refiner,
    build_segmenter,
    make_loop,
    set_test_dtype,
)
from iterinf.runtime.devices import (
    check_batch_size,
    collect,
    replicate,
    replicate_outputs,
)
from iterinf.runtime.distributed import print_once
from iterinf.segmenters.pretrained import (
    describe_input,
    describe_replaced,
    read_weights,
    replace_parameters,
)
from iterinf.training.batch_norm import estimate_statistics
from iterinf.training.frames import add_frames, list_outputs
from iterinf.training.loop import Params
from iterinf.training.losses import compute_cross_entropy, compute_reconstruction_loss
from iterinf.training.objectives import (
    Networks,
    Variables,
    combine,
    make_reconstruction,
    make_refiner_loss,
    make_segmenter_loss,
    propose,
    set_scalars,
    to_unit_range,
)
from iterinf.training.validation import Validate, make_validation
from iterinf.types import Candidate, Segmenter
from iterinf.workdir import (
    find_refiner,
    has_checkpoint,
    has_results,
    has_summary,
    keep_data,
    keep_settings,
    read_followed,
    read_statistics,
    write_input,
    write_statistics,
    write_summary,
)


class Experiment:
    """A config and the workdir that holds its results.

    Attributes:
      config: as of configs/base.py.
      workdir: segmenter/, refiners/<name>/, results/.
      dataset: the three splits.
      segmenter: the network that proposes y and h.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        """Opens the data and the workdir.

        Raises:
          UserError: If a value, name or option is invalid, the data cannot be opened,
            or the workdir holds results of another config.
        """
        self.config = config
        self.workdir = workdir
        self._networks: dict[str, Networks] = {}
        self._settings = json.loads(config.to_json())
        check_settings(self._settings)
        dataset = create_dataset(config.dataset.name, **config.dataset.options)
        if config.segmenter.name == "precomputed":
            dataset = add_outputs(dataset, pathlib.Path(config.segmenter.outputs))
        self.dataset: Dataset = dataset
        self.segmenter = build_segmenter(config, self.dataset.num_classes, workdir)
        self._trainer = Trainer(
            self.dataset.train,
            seed=config.seed,
            num_threads=config.loader.num_threads,
            trace_steps=config.trace_steps,
            checkpoint_seconds=config.checkpoint_seconds,
        )
        self._check_parts()
        self._check_first_image()
        keep_settings(workdir, self._settings)

    def _check_parts(self) -> None:
        """Builds everything that training needs, so that errors show at once."""
        for key, settings in list_trained(self.config).items():
            for phase in ("training", "fine_tuning"):
                self._trainer.create_optimizer(settings[phase])
                if settings[phase].num_epochs:
                    key_of_size = f"config.{key}.{phase}.batch_size"
                    check_batch_size(settings[phase].batch_size, key_of_size)
        for name in self.config.refiners:
            refiner, settings = self.create_refiner(name), self.config.refiner[name]
            if "training" in settings:
                make_refiner_loss(self.segmenter, refiner, **settings.objective)
                phases = (settings.training, settings.fine_tuning)
                if self.segmenter.feature_offset and any(map(reads_frames, phases)):
                    raise UserError(
                        f"config.refiner.{name} has inputs 'frames', but no crop "
                        "begins where the segmenter's features do, before the image; "
                        "expected 'crops', or another padding of the segmenter"
                    )

    def _check_first_image(self) -> None:
        """Checks crops against an image; `check_data` names those it cannot read."""
        try:
            first = self.dataset.train[0]
        except UserError:
            return
        check_crops(self._settings, {first.label.shape}, find_stride(first.outputs))

    def check_data(self) -> dict[str, SplitSummary]:
        """Reads every record; crops must lie inside every training image.

        Returns:
          What was counted, by name of the split.

        Raises:
          UserError: If anything is wrong; names all of it.
        """
        summaries = check_dataset(self.dataset, show_progress=self.config.progress)
        stride = find_stride(self.dataset.train[0].outputs)
        check_crops(self._settings, set(summaries["train"].sizes), stride)
        return summaries

    def check_same_data(self) -> None:
        """Compares the data with those of the results, see `iterinf.workdir.keep_data`.

        Raises:
          UserError: If they differ.
        """
        keep_data(self.workdir, describe_dataset(self.dataset))

    def check_refiners(self) -> None:
        """Builds in shapes the refiners that are still to be trained.

        Raises:
          UserError: If one reads a feature that the segmenter does not give, or lacks a
            parameter of its grid.
        """
        names = [
            name
            for name in self.config.refiners
            if not has_checkpoint(find_refiner(self.workdir, name))
        ]
        if not names:
            return
        key, batch = jax.random.key(0), stack_records([self.dataset.train[0]])
        variables = jax.eval_shape(
            functools.partial(self.segmenter.init, key),
            to_unit_range(batch).image,
            **batch.outputs,
        )
        for name in names:
            settings = self.config.refiner[name]
            candidate = self._make_candidate(variables, settings)
            shapes = jax.eval_shape(self.create_refiner(name).init, key, candidate)
            values = dict.fromkeys(settings.selection.parameters, 0.0)
            set_scalars({"refiner": shapes}, values)

    def create_refiner(self, name: str) -> nn.Module:
        """Returns the network of a refiner of the config, without parameters."""
        num_classes = self.dataset.num_classes
        return build_refiner(self.config, name, self.segmenter, num_classes)

    def train_segmenter(self) -> Variables:
        """Trains the segmenter, or restores it; returns its best variables."""
        return self._segmenter_variables

    @functools.cached_property
    def _segmenter_variables(self) -> Variables:
        if not has_results(self.workdir):
            self.check_data()
        variables: Variables = {}
        if "training" in self.config.segmenter:
            variables["params"] = self._fit_segmenter()
        if getattr(self.segmenter, "statistics", "") == "running":
            variables["statistics"] = self._estimate_statistics(variables)
        if not has_summary(self.workdir):
            write_summary(self.workdir, self._summarise(variables))
        return variables

    def _fit_segmenter(self) -> Params:
        folder = self.workdir / "segmenter"
        settings = self.config.segmenter
        params = self._trainer.initialise(self.segmenter, jnp.zeros((1, 64, 64, 3)))
        if settings.init_from and not has_checkpoint(folder):
            weights = read_weights(settings.init_from, self.segmenter)
            print_once(describe_replaced(params, weights, settings.init_from))
            params = replicate(replace_parameters(params, weights, settings.init_from))
            write_input(self.workdir, describe_input(self.segmenter))
        return self._trainer.fit(
            params,
            make_segmenter_loss(self.segmenter, self._compute_class_weights()),
            lambda params: self._validate_segmenter({"params": params}),
            folder,
            settings,
        )

    @functools.cached_property
    def _validate_segmenter(self) -> Validate:
        """Measures the segmenter's variables, whichever collections they have."""

        def predict(variables, _, batch):
            return self.segmenter.apply(variables, batch.image, **batch.outputs)[0]

        return self._make_validation(predict, compute_cross_entropy)

    def _estimate_statistics(self, variables: Variables) -> Variables:
        """Estimates the statistics over an epoch of the last phase, or reads them."""
        statistics = read_statistics(self.workdir)
        if statistics is None:
            settings = self.config.segmenter
            fine_tuned = settings.fine_tuning.num_epochs > 0
            phase = settings.fine_tuning if fine_tuned else settings.training
            with contextlib.closing(self._trainer.make_batches(phase, 0)) as batches:
                estimated = estimate_statistics(
                    self.segmenter,
                    variables,
                    batches,
                    self._trainer.count_steps(phase),
                )
            statistics = jax.device_get(estimated)
            write_statistics(self.workdir, statistics)
        return replicate(statistics)

    def _summarise(self, variables: Variables) -> dict[str, float]:
        """Computes the segmenter's mean IoU on training crops and on validation."""
        summary = {}
        if "training" in self.config.segmenter:
            score = self._score_training_crops(variables)
            summary["mean_iou_on_training_crops"] = score
        score = self._validate_segmenter(variables)["validation/mean_iou"]
        return summary | {"mean_iou_on_validation": score}

    def _compute_class_weights(self) -> np.ndarray | None:
        if self.config.segmenter.class_weights == "none":
            return None
        summary = count_records(self.dataset.train, self.dataset.num_classes)
        return compute_median_frequency_weights(summary.pixels[:, :-1])

    def train_refiner(self, name: str) -> Networks:
        """Trains a refiner, or restores it if it is already trained.

        Returns:
          Its variables and those of the segmenter that proposes to it: the frozen one,
          or its own copy where the two were trained end to end.
        """
        if name not in self._networks:
            frozen = {"segmenter": self.train_segmenter()}
            self._networks[name] = combine(self._train_refiner(name, frozen), frozen)
        return self._networks[name]

    def prepare(
        self, name: str, parameters: Mapping[str, float]
    ) -> tuple[Segmenter, nn.Module, Networks]:
        """Prepares networks to choose, to count, and to draw with.

        Args:
          name: its key in the config.
          parameters: values of its scalar parameters.

        Returns:
          The segmenter, or a chain of it and the refiner that is followed; the refiner;
          the variables of both.

        Raises:
          UserError: see `iterinf.workdir.read_followed`.
        """
        networks = set_scalars(self.train_refiner(name), parameters)
        segmenter: Segmenter = set_test_dtype(self.segmenter, self.config)
        refiner = set_test_dtype(self.create_refiner(name), self.config)
        if chosen := read_followed(self.workdir, self.config, name):
            followed = find_followed(self.config.refiner[name])
            first = set_test_dtype(self.create_refiner(followed), self.config)
            loop = make_loop(self.config, followed, first, chosen)
            segmenter = Chain(segmenter, loop)
            others = self.train_refiner(followed)
            networks |= {"segmenter": set_scalars(others, chosen.parameters)}
        return segmenter, refiner, networks

    def _train_refiner(self, name: str, frozen: Networks) -> Params:
        settings, refiner = self.config.refiner[name], self.create_refiner(name)
        candidate = self._make_candidate(frozen["segmenter"], settings)
        params = {"refiner": self._trainer.initialise(refiner, candidate)}
        if "training" not in settings:
            return params
        if settings.end_to_end:
            params["segmenter"] = frozen["segmenter"]["params"]
        open_frames = functools.partial(
            add_frames,
            self.dataset.train,
            self.workdir / "segmenter" / "frames",
            list_outputs(refiner),
            self.segmenter,
            frozen["segmenter"],
            show_progress=self.config.progress,
        )
        objective = settings.objective
        weights = {k: objective[k] for k in ("squared_error", "cross_entropy")}
        return dataclasses.replace(self._trainer, open_frames=open_frames).fit(
            params,
            make_refiner_loss(self.segmenter, refiner, **objective),
            self._make_validation(
                make_reconstruction(self.segmenter, refiner, objective.num_iterations),
                functools.partial(compute_reconstruction_loss, **weights),
                frozen=frozen,
            ),
            find_refiner(self.workdir, name),
            settings,
            frozen=frozen,
        )

    def _make_candidate(self, variables: Variables, settings: ConfigDict) -> Candidate:
        """Returns an initial prediction of zeros for one training image or crop."""
        record = self.dataset.train[0]
        size = settings.training.crop_size if "training" in settings else None
        if size:
            record = crop_randomly(record, np.random.default_rng(0), size)
        shapes = jax.eval_shape(
            functools.partial(propose, self.segmenter),
            variables,
            to_unit_range(stack_records([record])),
        )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def _make_validation(
        self, predict: Any, measure_loss: Any, frozen: Any = None
    ) -> Validate:
        return make_validation(
            predict,
            measure_loss,
            self.dataset.validation,
            frozen=frozen,
            num_classes=self.dataset.num_classes,
            batch_size=self.config.evaluation.batch_size,
        )

    def _score_training_crops(self, variables: Variables) -> float:
        """Mean IoU of y on an epoch of the crops that it was trained on."""
        training = self.config.segmenter.training

        @jax.jit
        def count(variables, batch):
            logits, _ = self.segmenter.apply(variables, batch.image)
            predictions = jnp.argmax(logits, axis=-1)
            confusion = confusion_matrix(batch.label, predictions, logits.shape[-1])
            return replicate_outputs(confusion)

        steps = range(self._trainer.count_steps(training))
        with contextlib.closing(self._trainer.make_batches(training, 0)) as batches:
            parts = collect(count(variables, next(batches)) for _ in steps)
        confusion = np.asarray(jax.device_get(parts), np.int64).sum(axis=0)
        return float(compute_mean_iou(confusion))
