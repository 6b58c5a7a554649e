"""Eq. 5 without its cross-entropy: the squared error alone, of which Eq. 1 speaks."""

from configs import base, camvid_fcn8


def get_config():
    """Changes the loss of both DAEs."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.title += " by squared error"
        refiner.objective.cross_entropy = 0.0
    return config
