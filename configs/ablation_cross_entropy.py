"""Eq. 5 without its squared error: a DAE trained as a classifier of pixels."""

from configs import camvid_fcn8


def get_config():
    """Changes the loss of both DAEs."""
    config = camvid_fcn8.get_config()
    for refiner in config.refiner.values():
        refiner.title += " by cross-entropy"
        refiner.objective.squared_error = 0.0
    return config
