"""What each part of DAE(y) contributes, on half-size CamVid frames, in one table.

The six ablations of the paper's text and the refiners of the code released in 2017, all
on the segmenter of configs/camvid_small.py, each with equal compute. To avoid training
the segmenter again, copy the folder segmenter/ of that config's finished workdir here
first, or run launch.evidence, which does so.

python -m iterinf.main --config=configs/camvid_small_ablations.py \
  --workdir=runs/camvid_small_ablations --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import camvid_small, released_2017

# Name of the refiner -> suffix of its title, and the keys that differ.
_CHANGES = {
    "dae_y_pool4": (  # the paper's: h = pool4 alone
        ", h = pool4",
        {"model.features": ("pool4",)},
    ),
    "dae_y_image": (", h = image", {"model.features": ("input",)}),  # section 2.2
    "dae_y_plain": (  # random start, ReLU decoder, no skip connections: section 4.3
        ", published layers",
        {
            "model.unpool_fill": 0.0,
            "model.relu_decoder": True,
            "model.skip_connections": False,
            "model.full_size_skip": False,
            "model.start_as_identity": False,
        },
    ),
    "dae_y_sparse": (  # zeros next to the switches, as published: speckle
        ", zeros in unpooling",
        {"model.unpool_fill": 0.0},
    ),
    "dae_y_not_anchored": (  # every iteration corrects the result of the previous one
        ", not anchored",
        {"model.anchored": False},
    ),
    "dae_y_transposed": (", transposed", {"model.decoder": "transposed"}),  # 4.3
    "dae_y_squared_error": (", squared error", {"objective.cross_entropy": 0.0}),
    "dae_y_cross_entropy": (", cross-entropy", {"objective.squared_error": 0.0}),
    "dae_y_end_to_end": (  # section 4.5
        ", end to end",
        {
            "end_to_end": True,
            "training.inputs": "crops",  # the segmenter changes
            "objective.proposal_cross_entropy": 1.0,
            "training.optimizer.learning_rate": 1e-4,
        },
    ),
    "dae_y_2017": (
        ", released 2017",
        {
            "model.features": ("pool4",),
            "model.unpool_fill": 0.0,
            "model.full_size_skip": False,
            "model.start_as_identity": False,
            "model.switches": "tied",
            "model.switch_noise": 0.5,
            "objective.sigma": 0.5,
            "objective.squared_error": 1 / 11,
            "training.optimizer.weight_decay": 0.0,
            "selection.stop": 1e-3,
            "selection.count_stopped": False,
        },
    ),
}


def get_config():
    """Adds the refiners; DAE(y) itself comes last."""
    config = camvid_small.get_config()
    for name, (suffix, changes) in _CHANGES.items():
        refiner = config.refiner.dae_y.copy_and_resolve_references()
        refiner.title += suffix
        refiner.update_from_flattened_dict(changes)
        config.refiner[name] = refiner
    released = config.refiner.context_module.copy_and_resolve_references()
    released.title += ", released 2017"
    released.model.update(
        inputs="probabilities", use_image=True, first_init="glorot", padding="once"
    )
    config.refiner.context_module_2017 = released
    config.refiner.dense_crf_2017 = released_2017.create_dense_crf()
    config.refiners = ("dense_crf_2017", "context_module_2017", *_CHANGES, "dae_y")
    return config
