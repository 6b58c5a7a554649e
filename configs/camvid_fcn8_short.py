"""camvid_fcn8 with schedules of minutes on one data-centre GPU.

Differences from that config: bfloat16 computation; FCN-8 with 'same' padding and
normalised images, 200 of 750 epochs with patience 60, its learning rate falling by 1.5%
per epoch; DAEs and context module 100 of 500 epochs with patience 40 and decay .97;
CRF-RNN 10 of 50 epochs; 12 of the CRF's 36 combinations; 30 of 50 iterations. A further
DAE(y) reads the image and all pools, starts as the identity and has skip connections,
as in configs/camvid_small.py.

On an H200 the segmenter took 2 minutes, and each DAE 4 to 5 alongside others. The CRFs
and the context module did not finish alongside them (docs/results.md): run the DAEs
concurrently, by launch.table1 with --jobs=3, and the other refiners afterwards.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes the dtype and the schedules; adds a DAE."""
    config = camvid_fcn8.get_config()
    config.dtype = "bfloat16"
    config.evaluation.update(batch_size=8, sweep_batch_size=4)
    config.segmenter.model.update(
        padding="same",
        input_mean=(0.412, 0.425, 0.433),  # of CamVid's training frames
        input_std=(0.307, 0.312, 0.307),
    )
    config.segmenter.training.update(num_epochs=200, patience=60)
    config.segmenter.training.optimizer.decay_per_epoch = 0.985
    for refiner in (*base.list_daes(config), config.refiner.context_module):
        refiner.training.update(num_epochs=100, patience=40)
        refiner.training.optimizer.decay_per_epoch = 0.97
    base.limit_iterations(config, 30)
    config.refiner.crf_rnn.training.update(num_epochs=10, patience=5)
    config.refiner.dense_crf.selection.parameters.update(
        color_width=(13.0,), bilateral_weight=(3.0, 10.0)
    )
    config.refiners += ("dae_y_pools",)
    config.refiner.dae_y_pools = create_dae_of_all_pools(config.refiner.dae_y)
    return config


def create_dae_of_all_pools(dae_y):
    """Creates a DAE(y) that starts as the identity and reads features of all sizes."""
    refiner = dae_y.copy_and_resolve_references()
    refiner.title = "DAE(y), all pools"
    refiner.model.update(
        widths=(64, 128, 256, 512, 1024),
        features=("input", "pool1", "pool2", "pool3", "pool4"),
        relu_decoder=False,
        skip_connections=True,
        start_as_identity=True,
    )
    refiner.training.update(monitor="validation/mean_iou", ema_decay=0.99)
    refiner.training.optimizer = base.create_adam(5e-4, 0.97, weight_decay=1e-4)
    return refiner
