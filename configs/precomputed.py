"""Your own network's output on CamVid, refined; no segmenter is trained.

Write its class probabilities as iterinf/data/external.py says (docs/precomputed.md has
ten lines of PyTorch). The DAEs read them and the image; if the files hold features,
name them: --config.refiner.dae_y.model.features="('input','pool4')".

python -m iterinf.main --config=configs/precomputed.py --workdir=runs/precomputed \
  --config.dataset.options.path=PATH_OF_CAMVID --config.segmenter.outputs=FOLDER
"""

from configs import base


def get_config():
    """CamVid; h is the image."""
    config = base.get_config()
    config.dataset = {"name": "camvid", "options": base.create_camvid()}
    config.segmenter = base.create_precomputed()
    for refiner in base.list_daes(config):
        refiner.model.features = ("input",)
    return config
