"""Every key with its default: the paper's settings for the DAE (section 4.4).

The other configs start from this one and change a few keys. On the command line,
--config.key=value overrides a key.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

Keys = dict[str, Any]  # nested; converted when it is set in a ConfigDict


def create_camvid() -> Keys:
    """Options of CamVid (iterinf/data/camvid.py)."""
    return {
        "path": "data/camvid",  # the published folder
        "scale": 1,  # 2: half the height and width
        "source": "folder",  # or "tfds", which copies it to `data_dir` once
        "data_dir": "",
        "holdout_clip": "",  # training clip to use as the test split, e.g. "0006R0"
    }


def create_folder() -> Keys:
    """Options of your own images (iterinf/data/folder.py)."""
    return {
        "path": "data/folder",
        "scale": 1,  # integer factor by which images are downscaled
        "cache": True,  # keep decoded images in memory
    }


def create_adam(
    learning_rate: float, decay_per_epoch: float, weight_decay: float = 0.0
) -> Keys:
    """Keys of an Adam optimizer."""
    return {
        "name": "adam",
        "learning_rate": learning_rate,
        "decay_per_epoch": decay_per_epoch,
        "weight_decay": weight_decay,
        "options": {},
    }


def create_rmsprop(**changes: Any) -> Keys:
    """Keys of an RMSprop optimizer."""
    return {
        "name": "rmsprop",  # any optimizer of optax
        "learning_rate": 1e-3,
        "decay_per_epoch": 0.99,
        "weight_decay": 1e-4,  # times the squared norm of the kernels
        "options": {"decay": 0.9, "eps": 1e-6},  # its keyword arguments
        **changes,
    }


def create_training(**changes: Any) -> Keys:
    """Keys of a training run; those of refiners have `inputs`, the source of y and h.

    "crops": the segmenter runs on each crop. "frames": it runs once on the whole
    training images and their mirror images, as at test, and its output is cropped
    (iterinf/training/frames.py).
    """
    return {
        "batch_size": 10,
        "crop_size": (224, 224),  # height, width; training images only
        "flip_probability": 0.5,
        "jitter": 0.0,  # strength of random brightness, contrast, saturation, gamma
        "num_epochs": 500,
        "patience": 100,  # epochs without improvement before early stopping
        "monitor": "validation/loss",  # or validation/mean_iou
        "ema_decay": 0.0,  # per step, of the parameter average; 0: no average
        "optimizer": create_rmsprop(),
        **changes,
    }


def create_fcn8() -> Keys:
    """Keys of an FCN-8 (iterinf/segmenters/fcn8.py) and its training."""
    return {
        "name": "fcn8",
        "title": "FCN8",
        "model": {
            "width": 1.0,
            "padding": "published",  # or "same"
            "relu_scores": False,
            "upsampling_init": "bilinear",  # or "glorot"
            "dropout": 0.5,
            "input_mean": (0.0, 0.0, 0.0),
            "input_std": (1.0, 1.0, 1.0),
        },
        "init_from": "",  # file of pretrained weights (segmenters/pretrained.py)
        "class_weights": "none",  # or "median_frequency"
        "training": create_training(
            num_epochs=750,
            patience=100,
            monitor="validation/mean_iou",
            optimizer=create_adam(1e-4, 1.0),
        ),
        "fine_tuning": create_fine_tuning(),
    }


def create_fc_densenet() -> Keys:
    """Keys of an FC-DenseNet103 (iterinf/segmenters/fc_densenet.py), in two phases."""
    return {
        "name": "fc_densenet103",
        "title": "FC-DenseNet103",
        "model": {
            "blocks": (4, 5, 7, 10, 12),  # layers per dense block
            "bottleneck": 15,
            "growth_rate": 16,
            "first_channels": 48,
            "dropout": 0.2,
            "statistics": "image",  # at test; or "batch" or "running"
            "rematerialise": False,
        },
        "init_from": "",
        "class_weights": "none",
        "training": create_training(
            batch_size=3,
            num_epochs=750,
            patience=150,
            monitor="validation/mean_iou",
            optimizer=create_rmsprop(decay_per_epoch=0.995),
        ),
        "fine_tuning": create_fine_tuning(
            batch_size=3,
            num_epochs=750,
            patience=50,
            monitor="validation/mean_iou",
            optimizer=create_rmsprop(learning_rate=1e-4, decay_per_epoch=1.0),
        ),
    }


def create_precomputed() -> Keys:
    """Keys of a precomputed network (iterinf/segmenters/precomputed.py)."""
    return {
        "name": "precomputed",
        "title": "network",
        "model": {},
        "outputs": "data/outputs",  # its outputs (iterinf/data/external.py)
    }


def create_fine_tuning(**changes: Any) -> Keys:
    """Keys of the fine-tuning phase on whole images; 0 epochs disables it."""
    return create_training(**{"crop_size": None, "num_epochs": 0} | changes)


def create_objective(**changes: Any) -> Keys:
    """Keys of a refiner's objective; the default is the cross-entropy of r(y)."""
    return {
        "start": "y",  # input to corrupt: "y" or "y_true" (Figure 1)
        "sigma": 0.0,  # standard deviation of the Gaussian noise
        "constraint": "none",  # applied after noise: "none", "clip" or "softmax"
        "squared_error": 0.0,  # weight of Eq. 5's first term
        "cross_entropy": 1.0,  # weight of its second term
        "proposal_cross_entropy": 0.0,  # weight of -log y_label, for end_to_end
        "num_iterations": 1,  # unrolled iterations in the loss
        "num_recycles": 0,  # further iterates at which the loss is computed
        "recycle_step_size": 0.5,  # step size between these iterates
        "self_conditioning": 0.0,  # share of crops moved towards r(y) first
        **changes,
    }


def create_selection(**changes: Any) -> Keys:
    """Keys of the choice on validation; the default is a single reconstruction."""
    return {
        "metric": "mean_iou",  # or "boundary_f1"; maximised on validation
        "parameters": {},  # values to try for each scalar parameter of r, by name
        "step_sizes": (1.0,),
        "num_iterations": 1,
        "stop": 0.0,  # mean ||y - r(y)|| at which an image stops; 0: never
        "count_stopped": True,  # in the mean IoU of later iterations
        "damped_step_sizes": (),  # of the one-step control; (): no controls
        **changes,
    }


def create_dense_crf(title: str = "CRF", follows: str = "") -> Keys:
    """Keys of a dense CRF, whose parameters are chosen on validation, not trained."""
    return {
        "name": "dense_crf",
        "title": title,
        "follows": follows,  # key of the refiner whose result it refines; "": y
        "model": {
            "spatial_width": 3.0,  # pixels
            "spatial_weight": 3.0,
            "bilateral_width": 80.0,  # pixels
            "color_width": 13.0,  # of 255
            "bilateral_weight": 10.0,
            "exact": False,  # True: sum over all pairs of pixels
        },
        "selection": create_selection(
            parameters={
                "spatial_width": (3.0,),
                "spatial_weight": (1.0, 3.0),
                "bilateral_width": (3.0, 80.0, 160.0),
                "color_width": (5.0, 13.0),
                "bilateral_weight": (1.0, 3.0, 10.0),
            },
            num_iterations=10,
        ),
    }


def create_context_module() -> Keys:
    """Keys of a context module."""
    return {
        "name": "context_module",
        "title": "context module",
        "model": {
            "inputs": "log_probabilities",  # or "probabilities"
            "use_image": False,
            "first_init": "identity",  # or "glorot"
            "padding": "same",  # or "once"
        },
        "objective": create_objective(),
        "end_to_end": False,
        # L2 would pull the weights from their start, the identity, towards zero.
        "training": create_training(
            inputs="crops",
            optimizer=create_rmsprop(learning_rate=1e-4, weight_decay=0.0),
        ),
        "fine_tuning": create_fine_tuning(inputs="crops"),
        "selection": create_selection(),
    }


def create_crf_rnn() -> Keys:
    """Keys of a CRF-RNN: 5 iterations in training, up to 10 chosen on validation.

    The segmenter is frozen unless `end_to_end`, which needs a lower learning rate.
    """
    return {
        "name": "crf_rnn",
        "title": "CRF-RNN",
        "model": {
            "spatial_width": 3.0,  # pixels
            "spatial_weight": 3.0,  # where training starts
            "bilateral_width": 160.0,  # pixels
            "color_width": 3.0,  # of 255
            "bilateral_weight": 5.0,  # where training starts
            "exact": False,
        },
        "objective": create_objective(num_iterations=5),
        "end_to_end": False,
        "training": create_training(
            inputs="crops",
            num_epochs=50,
            patience=10,
            optimizer=create_adam(1e-2, 0.95),
        ),
        "fine_tuning": create_fine_tuning(inputs="crops"),
        "selection": create_selection(num_iterations=10),
    }


def list_daes(config: ConfigDict) -> list[ConfigDict]:
    """Returns the refiners of a config that are DAEs."""
    return [refiner for refiner in config.refiner.values() if refiner.name == "dae"]


def limit_iterations(config: ConfigDict, num_iterations: int) -> None:
    """Sets the maximum number of iterations of all DAEs that iterate."""
    for refiner in list_daes(config):
        if refiner.model.reads_y:
            refiner.selection.num_iterations = num_iterations


def create_dae(title: str, *, start: str, sigma: float) -> Keys:
    """Keys of a conditional denoising autoencoder."""
    return {
        "name": "dae",
        "title": title,  # name of its row in the table
        "model": {
            "widths": (64, 128, 256, 512, 1024, 2048),
            "features": ("pool4",),  # h: any of input, pool1..pool5
            "reads_y": True,  # False: y is uniform (a control)
            "decoder": "unpool",  # with switches; or "transposed"
            "unpool_fill": 0.0,  # fraction of a value at the rest of its window
            "relu_decoder": True,
            "skip_connections": False,
            "full_size_skip": False,
            "start_as_identity": False,
            "anchored": False,
            "switches": "first",  # or "tied"
            "switch_noise": 0.0,  # on y, in the passes that give the switches
        },
        "objective": create_objective(start=start, sigma=sigma, squared_error=1.0),
        "end_to_end": False,  # True: also train a copy of the segmenter (4.5)
        "training": create_training(inputs="crops"),
        "fine_tuning": create_fine_tuning(inputs="crops"),
        "selection": create_selection(
            step_sizes=(0.01, 0.02, 0.05, 0.08, 0.1, 0.5, 1.0),
            num_iterations=50,
            damped_step_sizes=tuple(i / 10 for i in range(1, 11)),
        ),
    }


def create_dae_without_y() -> Keys:
    """Keys of the control of DAE(y) that reads h only, in a single pass."""
    refiner = create_dae("DAE without y", start="y", sigma=0.0)
    refiner["model"]["reads_y"] = False
    return refiner | {"selection": create_selection()}


def add_seeds(add: Callable[..., None]) -> None:
    """The `grid` of configs that run at seeds 0, 1 and 2."""
    for seed in range(3):
        add(seed=seed)


def get_config() -> ConfigDict:
    """Returns all keys; the data set is streets."""
    config = ConfigDict()
    config.seed = 0
    config.dtype = "float32"  # dtype of the computation; "bfloat16" on GPU and TPU
    config.progress = True  # progress bars, except those of training
    # Minimum time between checkpoints; until then the full state of the best and the
    # last epoch stays on the device. 0: a checkpoint after every epoch.
    config.checkpoint_seconds = 60.0
    config.trace_steps = 0  # steps of each training to trace; > 0 also traces sweeps
    config.loader = {"num_threads": 1}
    config.processes = {
        "coordinator": "",  # "auto" on SLURM and TPU pods; or "host:port", with
        "count": 1,
        "index": 0,
    }

    # For --mode=predict and --mode=export; other settings come from the workdir.
    config.predict = {
        "images": "",  # an image, a folder of images, or a pattern: "photos/*.jpg"
        "output": "",  # folder for the results
        "scale": placeholder(float),  # of sides; None: area of the training images
        "refiner": "",  # key of `refiner` below; "": the last of `refiners`
        "batch_size": 4,  # maximum number of images per batch
        "trajectory": False,  # True: also write every iteration
        "probabilities": "",  # folder of another network's predictions to refine
    }
    config.export = {"refiner": ""}  # "": all refiners

    config.dataset = {
        "name": "streets",
        "options": {  # of iterinf/data/streets/scene.py
            "seed": 0,  # determines the scenes
            "height": 96,
            "width": 128,
            "num_train": 400,
            "num_validation": 100,
            "num_test": 200,
        },
    }

    config.segmenter = create_fcn8()

    # Refiners to run: the rows of the table, in this order.
    config.refiners = (
        "dense_crf",
        "context_module",
        "crf_rnn",
        "dae_ytrue",
        "dae_no_y",
        "dae_y",
    )
    config.refiner = {
        "dense_crf": create_dense_crf(),
        "context_module": create_context_module(),
        "crf_rnn": create_crf_rnn(),
        "dae_y": create_dae("DAE(y)", start="y", sigma=0.1),
        "dae_ytrue": create_dae("DAE(y_true)", start="y_true", sigma=0.5),
        "dae_no_y": create_dae_without_y(),
        "dense_crf_after_dae_y": create_dense_crf("DAE(y), then CRF", "dae_y"),
    }

    config.evaluation = {
        "batch_size": 4,  # images per batch when a network is validated
        "sweep_batch_size": placeholder(int),  # images per batch; None: automatic
        "sweep_dtype": placeholder(str),  # of networks in sweeps; None: `dtype`
        "num_resamples": 2000,  # bootstrap resamples
        "boundary_tolerance": 0.0075,  # of boundary F1, relative to the diagonal
    }
    config.report = {"num_images": 5}  # test images in report.html
    return config
