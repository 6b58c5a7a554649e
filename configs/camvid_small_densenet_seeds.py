"""configs/camvid_small_densenet.py at three seeds of training.

python -m launch.evidence --only=camvid_small_densenet_seeds --workdir=runs/evidence \
  -- --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import camvid_small_densenet


def get_config():
    """Changes nothing: the grid does."""
    return camvid_small_densenet.get_config()


def grid(add):
    """Seeds 0, 1 and 2."""
    for seed in range(3):
        add(seed=seed)
