"""configs/camvid_small.py at three training seeds.

python -m launch.evidence --only=camvid_small_seeds --workdir=runs/evidence \
  -- --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base, camvid_small


def get_config():
    """Changes nothing: the grid sets the seeds."""
    return camvid_small.get_config()


grid = base.add_seeds
