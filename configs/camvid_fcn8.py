"""FCN-8 block of Table 1 at full size: the paper's settings for the DAE.

The paper: FCN8 57.0 mean IoU on test, DAE(y_true) 57.4, DAE(y) 60.0. Its FCN-8 was
most likely initialised from VGG16; this one starts from scratch. Needs a GPU.

python -m iterinf.main --config=configs/camvid_fcn8.py --workdir=runs/camvid_fcn8
"""

from configs import base


def get_config():
    """Changes the data set alone."""
    config = base.get_config()
    config.dataset = {"name": "camvid", "options": base.create_camvid()}
    return config
