"""camvid_fcn8 for 20 minutes of one data-centre GPU.

Against it: bfloat16 computation; FCN-8 300 epochs of 750 with patience 60, its rate
falling by 1% an epoch; DAEs and context module 150 epochs of 500 with patience 50,
decay .98; CRF-RNN 15 of 50.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes dtype and schedules."""
    config = camvid_fcn8.get_config()
    config.dtype = "bfloat16"
    config.evaluation.batch_size = 8
    config.segmenter.training.update(num_epochs=300, patience=60)
    config.segmenter.training.optimizer.decay_per_epoch = 0.99
    for refiner in (*base.list_daes(config), config.refiner.context_module):
        refiner.training.update(num_epochs=150, patience=50)
        refiner.training.optimizer.decay_per_epoch = 0.98
    config.refiner.crf_rnn.training.update(num_epochs=15, patience=5)
    return config
