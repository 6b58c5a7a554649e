"""camvid_fcn8 for 20 minutes of one data-centre GPU.

Against it: bfloat16 computation; FCN-8 300 epochs of 750 with patience 60, its rate
falling by 1% an epoch; DAEs 150 epochs of 500 with patience 50, decay .98.
"""

from configs import camvid_fcn8


def get_config():
    """Changes dtype and schedules."""
    config = camvid_fcn8.get_config()
    config.dtype = "bfloat16"
    config.evaluation.batch_size = 8
    config.segmenter.training.update(num_epochs=300, patience=60)
    config.segmenter.training.optimizer.decay_per_epoch = 0.99
    for refiner in config.refiner.values():
        refiner.training.update(num_epochs=150, patience=50)
        refiner.training.optimizer.decay_per_epoch = 0.98
    return config
