"""Refines the output of your own network on CamVid; no segmenter is trained.

Write the network's class probabilities in the format of iterinf/data/external.py
(docs/precomputed.md has ten lines of PyTorch). The DAEs read them and the image; if the
files hold features, name them:
--config.refiner.dae_y.model.features="('input','pool4')".

python -m iterinf.main --config=configs/precomputed.py --workdir=runs/precomputed \
  --config.dataset.options.path=PATH_OF_CAMVID --config.segmenter.outputs=FOLDER
"""

from configs import base


def get_config():
    """Uses CamVid, with the image as h."""
    config = base.get_config()
    config.dataset = {"name": "camvid", "options": base.create_camvid()}
    config.segmenter = base.create_precomputed()
    for refiner in base.list_daes(config):
        refiner.model.features = ("input",)
    return config
