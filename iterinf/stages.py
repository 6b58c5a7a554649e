"""The stages of an experiment; each goes on from what the workdir holds."""

import contextlib
import functools
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from iterinf.checkpoints import has_checkpoint
from iterinf.data import (
    Dataset,
    check_dataset,
    create_dataset,
    describe_dataset,
)
from iterinf.data.frequencies import compute_median_frequency_weights
from iterinf.data.loader import make_train_batches
from iterinf.errors import UserError
from iterinf.files import read_arrays, write_arrays, write_json
from iterinf.losses import compute_cross_entropy, compute_reconstruction_loss
from iterinf.metrics import confusion_matrix, mean_iou
from iterinf.objectives import (
    Validate,
    Variables,
    make_reconstruction,
    make_refiner_loss,
    make_segmenter_loss,
    make_validation,
    propose,
)
from iterinf.refiners import create_refiner
from iterinf.segmenters import create_segmenter
from iterinf.settings import check_crops, check_settings, keep_settings
from iterinf.statistics import estimate_statistics
from iterinf.training import (
    LossFunction,
    Params,
    Schedule,
    create_optimizer,
    create_train_state,
    fit,
    make_train_step,
)
from iterinf.weights import match_input, read_weights, replace_parameters


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
          UserError: values, names or options that cannot be, no data, or a workdir
            that holds another config's results.
        """
        self.config = config
        self.workdir = workdir
        self._refiner_variables: dict[str, Variables] = {}
        settings = json.loads(config.to_json())
        check_settings(settings)
        self.dataset: Dataset = create_dataset(
            config.dataset.name, **config.dataset.options
        )
        self.segmenter = create_segmenter(
            config.segmenter.name,
            num_classes=self.dataset.num_classes,
            dtype=jnp.dtype(config.dtype),
            **config.segmenter.model,
        )
        if config.segmenter.init_from:
            self.segmenter = match_input(self.segmenter)
        self._check_parts()
        keep_settings(workdir, settings)

    def _check_parts(self) -> None:
        """Builds all that training will need, so that an error shows at once."""
        refiners = [self.config.refiner[name] for name in self.config.refiners]
        for settings in (self.config.segmenter, *refiners):
            self._create_optimizer(settings.training)
            self._create_optimizer(settings.fine_tuning)
        for name, settings in zip(self.config.refiners, refiners, strict=True):
            make_refiner_loss(
                self.segmenter, self.create_refiner(name), **settings.objective
            )

    def check_data(self) -> None:
        """Reads every record; crops must lie inside every training image.

        Raises:
          UserError: naming all that is wrong.
        """
        check_dataset(self.dataset, show_progress=self.config.progress)
        sizes = {record.label.shape for record in self.dataset.train}
        check_crops(json.loads(self.config.to_json()), sizes)

    def check_same_data(self) -> None:
        """Compares the data to what the workdir's results were made from.

        Raises:
          UserError: if they differ in classes, names, or the first record of a split.
        """
        path, found = self.workdir / "data.json", describe_dataset(self.dataset)
        if path.exists() and has_checkpoint(self.workdir):
            kept = json.loads(path.read_text())
            for name in found:
                if found[name] != kept[name]:
                    raise UserError(
                        f"{self.workdir} holds results of other data (its {name} "
                        "differ); name another workdir"
                    )
        write_json(path, found)

    def create_refiner(self, name: str) -> nn.Module:
        """The network of a refiner of the config, not trained."""
        settings = self.config.refiner[name]
        return create_refiner(
            settings.name,
            num_classes=self.dataset.num_classes,
            feature_offset=self.segmenter.feature_offset,
            dtype=jnp.dtype(self.config.dtype),
            **settings.model,
        )

    @functools.cached_property
    def segmenter_variables(self) -> Variables:
        """The segmenter's best variables; trained if they are not there yet."""
        variables = {"params": self._train_segmenter()}
        if getattr(self.segmenter, "statistics", "") == "running":
            variables["statistics"] = self._estimate_statistics(variables)
        path = self.workdir / "segmenter" / "summary.json"
        if not path.exists():
            write_json(path, self._summarise(variables))
        return variables

    def _train_segmenter(self) -> Params:
        folder = self.workdir / "segmenter"
        if not has_checkpoint(folder):
            self.check_data()
        settings = self.config.segmenter
        return self._fit(
            self.segmenter,
            jnp.zeros((1, 64, 64, 3)),
            make_segmenter_loss(self.segmenter, self._compute_class_weights()),
            self._make_segmenter_validation({}),
            folder,
            settings,
            init_from=settings.init_from,
        )

    def _make_segmenter_validation(self, statistics: Variables) -> Validate:
        """Of parameters, beside which the other collections are given."""

        def predict(params, collections, images):
            return self.segmenter.apply({"params": params, **collections}, images)[0]

        return self._make_validation(predict, compute_cross_entropy, frozen=statistics)

    def _estimate_statistics(self, variables: Variables) -> Variables:
        """Over an epoch of the last phase's images; kept in a file."""
        path = self.workdir / "segmenter" / "statistics.npz"
        if not path.exists():
            settings = self.config.segmenter
            fine_tuned = settings.fine_tuning.num_epochs > 0
            phase = settings.fine_tuning if fine_tuned else settings.training
            with contextlib.closing(self._make_batches(phase, 0)) as batches:
                statistics = estimate_statistics(
                    self.segmenter,
                    variables,
                    batches,
                    self._count_steps(phase),
                    jax.random.key(self.config.seed),
                )
            write_arrays(path, **flatten_dict(jax.device_get(statistics), sep="/"))
        return unflatten_dict(read_arrays(path), sep="/")

    def _summarise(self, variables: Variables) -> dict[str, float]:
        """How well the segmenter knows its training crops, and validation."""
        collections = {k: v for k, v in variables.items() if k != "params"}
        validate = self._make_segmenter_validation(collections)
        return {
            "mean_iou_on_training_crops": self._score_training_crops(variables),
            "mean_iou_on_validation": validate(variables["params"])[
                "validation/mean_iou"
            ],
        }

    def _compute_class_weights(self) -> np.ndarray | None:
        if self.config.segmenter.class_weights == "none":
            return None
        return compute_median_frequency_weights(
            self.dataset.train, self.dataset.num_classes
        )

    def train_refiner(self, name: str) -> Variables:
        """Trains a refiner on the frozen segmenter, or reads it where that is done."""
        if name not in self._refiner_variables:
            self._refiner_variables[name] = {"params": self._train_refiner(name)}
        return self._refiner_variables[name]

    def _train_refiner(self, name: str) -> Params:
        settings = self.config.refiner[name]
        refiner = self.create_refiner(name)
        frozen = self.segmenter_variables
        weights = {
            "squared_error": settings.objective.squared_error,
            "cross_entropy": settings.objective.cross_entropy,
        }
        size = settings.training.crop_size or self.dataset.train[0].label.shape
        shapes = jax.eval_shape(
            functools.partial(propose, self.segmenter),
            frozen,
            jnp.zeros((1, *size, 3)),
        )
        candidate = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return self._fit(
            refiner,
            candidate,
            make_refiner_loss(self.segmenter, refiner, **settings.objective),
            self._make_validation(
                make_reconstruction(self.segmenter, refiner),
                functools.partial(compute_reconstruction_loss, **weights),
                frozen=frozen,
            ),
            self.workdir / "refiners" / name,
            settings,
            frozen=frozen,
        )

    def _fit(
        self,
        network: nn.Module,
        inputs: Any,
        compute_loss: LossFunction,
        validate: Any,
        folder: pathlib.Path,
        settings: ConfigDict,
        *,
        frozen: Any = None,
        init_from: str = "",
    ) -> Params:
        key = jax.random.key(self.config.seed)
        init_key, step_key = jax.random.split(key)
        params = jax.jit(network.init)(init_key, inputs)["params"]
        if init_from and not has_checkpoint(folder):
            weights = read_weights(init_from, network)
            params = replace_parameters(params, weights, init_from)
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
        optimizer = self._create_optimizer(training)
        return fit(
            create_train_state(
                params, optimizer, step_key, averaged=training.ema_decay > 0
            ),
            make_train_step(compute_loss, optimizer, ema_decay=training.ema_decay),
            validate,
            functools.partial(self._make_batches, training),
            folder,
            Schedule(
                num_epochs=training.num_epochs,
                steps_per_epoch=self._count_steps(training),
                patience=training.patience,
                monitor=training.monitor,
                maximize=not training.monitor.endswith("loss"),
            ),
            frozen=frozen,
            title=title,
        )

    def _count_steps(self, training: ConfigDict) -> int:
        """Optimizer steps in an epoch."""
        return max(1, len(self.dataset.train) // training.batch_size)

    def _create_optimizer(self, training: ConfigDict) -> optax.GradientTransformation:
        return create_optimizer(
            **training.optimizer.to_dict(), steps_per_epoch=self._count_steps(training)
        )

    def _make_batches(self, training: ConfigDict, first_batch: int) -> Any:
        return make_train_batches(
            self.dataset.train,
            batch_size=training.batch_size,
            crop_size=training.crop_size,
            flip_probability=training.flip_probability,
            jitter=training.jitter,
            seed=self.config.seed,
            num_threads=self.config.loader.num_threads,
            first_batch=first_batch,
        )

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
            return confusion_matrix(batch.label, predictions, logits.shape[-1])

        steps = range(self._count_steps(training))
        with contextlib.closing(self._make_batches(training, 0)) as batches:
            return float(mean_iou(sum(count(variables, next(batches)) for _ in steps)))
