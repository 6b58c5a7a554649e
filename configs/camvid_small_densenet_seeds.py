"""configs/camvid_small_densenet.py at three training seeds.

python -m launch.evidence --only=camvid_small_densenet_seeds --workdir=runs/evidence \
  -- --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base, camvid_small_densenet


def get_config():
    """Changes nothing: the grid sets the seeds."""
    return camvid_small_densenet.get_config()


grid = base.add_seeds
