"""FC-DenseNet103 block of Table 1 at full size, trained from scratch.

First crops, then whole frames at a tenth of the learning rate, as in Jégou et al. 2017.
The paper reports FC-DenseNet103 66.9 mean IoU on test, CRF 67.2, context module 67.2,
DAE(y_true) 67.1, DAE(y) 67.4, and no CRF-RNN for this network. Needs a GPU.

python -m iterinf.main --config=configs/camvid_fc_densenet103.py \
  --workdir=runs/camvid_fc_densenet103 --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base


def get_config():
    """Changes the data set and the segmenter."""
    config = base.get_config()
    config.dataset = {"name": "camvid", "options": base.create_camvid()}
    config.segmenter = base.create_fc_densenet()
    return config
