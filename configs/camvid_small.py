"""Half-size CamVid frames on a CPU: a narrow FCN-8, five-level DAEs.

Differences from configs/camvid_fcn8.py: frames of 180x240, crops of 112, an FCN-8 of a
quarter of the width with 'same' padding; DAEs of five levels, 16 to 256 wide, that read
the image and all pools up to pool4, have skip connections, a linear decoder and
unpooling that fills its windows, start as the identity, are anchored to the first y
(docs/method.md), and keep an average of their parameters. All refiners are trained on
the segmenter's output for whole frames. The context module and CRF-RNN have 40 and 12
epochs; the CRF, alone and after DAE(y), has 12 of the 36 combinations. docs/results.md
lists other variants that were tried.

python -m iterinf.main --config=configs/camvid_small.py --workdir=runs/camvid_small \
  --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base


def get_config():
    """Uses small frames and networks."""
    config = base.get_config()
    config.dataset = {"name": "camvid", "options": base.create_camvid()}
    config.dataset.options.scale = 2
    segmenter = config.segmenter
    segmenter.model.update(
        width=0.25,
        padding="same",
        input_mean=(0.412, 0.425, 0.433),  # of CamVid's training frames
        input_std=(0.307, 0.312, 0.307),
    )
    segmenter.training.update(crop_size=(112, 112), num_epochs=150, patience=15)
    segmenter.training.optimizer.update(learning_rate=1e-3, decay_per_epoch=0.97)
    base.limit_iterations(config, 30)
    for refiner in base.list_daes(config):
        refiner.model.update(
            widths=(16, 32, 64, 128, 256),
            features=("input", "pool1", "pool2", "pool3", "pool4"),
            relu_decoder=False,
            unpool_fill=0.7,
            skip_connections=True,
            full_size_skip=True,
            start_as_identity=True,
            anchored=True,
        )
        refiner.training.update(
            crop_size=(112, 112),
            num_epochs=100,
            patience=20,
            monitor="validation/mean_iou",
            ema_decay=0.99,
            inputs="frames",
        )
        refiner.training.optimizer = base.create_adam(2e-3, 0.96, weight_decay=1e-4)
    context_module, crf_rnn = config.refiner.context_module, config.refiner.crf_rnn
    for refiner, num_epochs in ((context_module, 40), (crf_rnn, 12)):
        refiner.training.update(
            crop_size=(112, 112),
            num_epochs=num_epochs,
            patience=8,
            monitor="validation/mean_iou",
            ema_decay=0.99,
            inputs="frames",
        )
    for name in ("dense_crf", "dense_crf_after_dae_y"):
        config.refiner[name].selection.parameters.update(
            color_width=(13.0,), bilateral_weight=(3.0, 10.0)
        )
    *others, main = config.refiners
    config.refiners = (*others, "dense_crf_after_dae_y", main)
    config.evaluation.update(batch_size=5, sweep_batch_size=5)
    return config
