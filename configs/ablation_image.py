"""Section 2.2: DAEs conditioned on the image x instead of the features h.

Shows what the segmenter's learned pool4 features add to the image.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes h."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.title += " of the image"
        refiner.model.features = ("input",)
    return config
