"""Eq. 5 without the cross-entropy: the squared error alone, which Eq. 1 is about."""

from configs import base, camvid_fcn8


def get_config():
    """Changes the loss of both DAEs."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.title += " by squared error"
        refiner.objective.cross_entropy = 0.0
    return config
