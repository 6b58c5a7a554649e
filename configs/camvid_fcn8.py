"""FCN-8 block of Table 1 at full size: the paper's settings for the DAE.

The paper reports FCN8 57.0 mean IoU on test, CRF 58.2, context module 58.3, CRF-RNN
58.7, DAE(y_true) 57.4, DAE(y) 60.0. Its FCN-8 was most likely initialised from VGG16;
this one is trained from scratch. As in the paper, CRF-RNN is trained jointly with the
segmenter, here with a copy of the trained segmenter. Needs a GPU.

python -m iterinf.main --config=configs/camvid_fcn8.py --workdir=runs/camvid_fcn8
"""

from configs import base


def get_config():
    """Changes the data set, and trains CRF-RNN end to end."""
    config = base.get_config()
    config.dataset = {"name": "camvid", "options": base.create_camvid()}
    config.refiner.crf_rnn.end_to_end = True
    config.refiner.crf_rnn.training.optimizer.learning_rate = 1e-4
    return config
