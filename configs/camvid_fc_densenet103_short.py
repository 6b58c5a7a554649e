"""camvid_fc_densenet103 for 20 minutes of one data-centre GPU.

Against it: bfloat16 computation; 100 epochs of crops of 750, decay .97, and 10 of whole
frames; DAEs as in configs/camvid_fcn8_short.py.
"""

from configs import base, camvid_fcn8_short


def get_config():
    """Changes the segmenter of camvid_fcn8_short, and its schedule."""
    config = camvid_fcn8_short.get_config()
    config.segmenter = base.create_fc_densenet()
    config.segmenter.training.update(num_epochs=100, patience=50)
    config.segmenter.training.optimizer.decay_per_epoch = 0.97
    config.segmenter.fine_tuning.num_epochs = 10
    return config
