"""Eq. 5 without the squared error: a DAE trained as a classifier of pixels."""

from configs import base, camvid_fcn8


def get_config():
    """Changes the loss of both DAEs."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.title += " by cross-entropy"
        refiner.objective.squared_error = 0.0
    return config
