"""camvid_fc_densenet103 with a short schedule for one data-centre GPU; not run yet.

Differences from that config: bfloat16 computation; 100 of 750 epochs on crops, with
batch size 10 and decay .97, and 10 epochs on whole frames; running statistics at test;
refiners as in configs/camvid_fcn8_short.py, but without CRF-RNN, which the paper does
not report for this network.
"""

from configs import base, camvid_fcn8_short


def get_config():
    """Changes the segmenter of camvid_fcn8_short and its schedule."""
    config = camvid_fcn8_short.get_config()
    config.segmenter = base.create_fc_densenet()
    config.segmenter.model.statistics = "running"
    config.segmenter.training.update(batch_size=10, num_epochs=100, patience=50)
    config.segmenter.training.optimizer.decay_per_epoch = 0.97
    config.segmenter.fine_tuning.num_epochs = 10
    config.refiners = tuple(name for name in config.refiners if name != "crf_rnn")
    return config
