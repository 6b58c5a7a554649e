"""The whole experiment on the embedded street scenes, in minutes on two CPU cores.

Differences from configs/base.py: scenes of 96x128, crops of 64, an FCN-8 of 5/32 of the
width with 'same' padding, 4 of the CRF's 36 combinations, and no CRF-RNN. The DAEs have
five levels, read the image and all pools up to pool4 (section 2.2: "either the input x
or some features h"), have skip connections, a linear decoder and unpooling that fills
its windows, start as the identity, are anchored to the first y (docs/method.md), are
trained on the segmenter's output for whole frames, and run for at most 20 iterations.
Numbers and seeds: docs/results.md.

python -m iterinf.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import base


def get_config():
    """Uses small networks, small images and short schedules."""
    config = base.get_config()
    config.dataset.options.update(num_train=300, num_validation=30, num_test=100)
    segmenter = config.segmenter
    segmenter.model.update(
        width=0.15625,
        padding="same",
        input_mean=(0.45, 0.45, 0.45),
        input_std=(0.25, 0.25, 0.25),
    )
    segmenter.training.update(
        crop_size=(64, 64), num_epochs=100, patience=5, ema_decay=0.97
    )
    segmenter.training.optimizer.update(learning_rate=2e-3, decay_per_epoch=0.93)
    base.limit_iterations(config, 20)
    for refiner in base.list_daes(config):
        refiner.model.update(
            widths=(16, 32, 64, 96, 128),
            features=("input", "pool1", "pool2", "pool3", "pool4"),
            relu_decoder=False,
            unpool_fill=0.7,
            skip_connections=True,
            full_size_skip=True,
            start_as_identity=True,
            anchored=True,
        )
        refiner.training.update(
            crop_size=(64, 64), num_epochs=52, patience=20, inputs="frames"
        )
        refiner.training.optimizer = base.create_adam(2e-3, 0.93, weight_decay=1e-4)
    config.refiners = ("dense_crf", "context_module", "dae_ytrue", "dae_no_y", "dae_y")
    config.refiner.context_module.training.update(
        crop_size=(64, 64), num_epochs=12, patience=4, inputs="frames"
    )
    config.refiner.dense_crf.selection.parameters.update(
        spatial_weight=(1.0,),
        bilateral_width=(3.0, 80.0),
        color_width=(13.0,),
        bilateral_weight=(3.0, 10.0),
    )
    config.evaluation.update(batch_size=10, sweep_batch_size=10)
    return config
