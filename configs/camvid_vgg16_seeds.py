"""configs/camvid_vgg16.py at two training seeds.

python -m launch.evidence --only=camvid_vgg16_seeds --workdir=runs/evidence \
  -- --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import camvid_vgg16


def get_config():
    """Changes nothing: the grid sets the seeds."""
    return camvid_vgg16.get_config()


def grid(add):
    """Two seeds: training the segmenter takes over an hour on two cores."""
    for seed in range(2):
        add(seed=seed)
