"""Section 4.5: segmenter and DAE(y) trained end to end.

A copy of the trained segmenter is trained further with the DAE, on Eq. 5 and on the
cross-entropy of y, at the segmenter's learning rate. The segmenter's dropout is off,
and its kernels get the DAE's L2 penalty. Expected: no more gain than
configs/camvid_fcn8.py, for more memory and time.
"""

from configs import base, camvid_fcn8


def get_config():
    """Trains the segmenter too, and changes the learning rate."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_y",)
    for refiner in base.list_daes(config):
        refiner.title += " end to end"
        refiner.end_to_end = True
        refiner.objective.proposal_cross_entropy = 1.0
        refiner.training.optimizer.learning_rate = 1e-4
    return config
