"""configs/camvid_small.py at three seeds, with DAEs trained where the loop goes.

python -m launch.evidence --only=camvid_small_seeds --workdir=runs/evidence \
  -- --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base, camvid_small, quickstart_recycling


def get_config():
    """Adds the variants of DAE(y) of configs/quickstart_recycling.py; sets no seed."""
    config = camvid_small.get_config()
    quickstart_recycling.add_variants(config)
    return config


grid = base.add_seeds
