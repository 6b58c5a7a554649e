"""Your own images and label maps, in the layout that iterinf/data/folder.py describes.

The networks and schedule are those of configs/camvid_small.py, which suit images of a
few hundred pixels and two CPU cores; on a GPU, start from configs/camvid_fcn8.py.

python -m iterinf.main --config=configs/folder.py --workdir=runs/folder \
  --config.dataset.options.path=PATH_OF_IMAGES
"""

from configs import base, camvid_small


def get_config():
    """Changes only the data set and the normalisation of its images."""
    config = camvid_small.get_config()
    config.dataset = {"name": "folder", "options": base.create_folder()}
    config.segmenter.model.update(
        input_mean=(0.45, 0.45, 0.45), input_std=(0.25, 0.25, 0.25)
    )
    return config
