"""FC-DenseNet103 and DAE(y) as in the code released in 2017.

The DAE is that of configs/released_2017.py. The segmenter normalises by the statistics
of batches of 10, at test too, so that the segmentation of an image depends on the other
images in its batch.
"""

from configs import base, released_2017


def get_config():
    """Changes the segmenter of released_2017."""
    config = released_2017.get_config()
    config.segmenter = base.create_fc_densenet()
    config.segmenter.title += " of 2017"
    config.segmenter.model.statistics = "batch"
    config.evaluation.update(batch_size=10, sweep_batch_size=10)
    return config
