"""Section 4.5: segmenter and DAE(y) trained end to end.

A copy of the trained segmenter goes on with the DAE, by Eq. 5 and by the cross-entropy
of y, at the segmenter's learning rate. Dropout of the segmenter is off, and its kernels
have the DAE's L2. Should gain no more than configs/camvid_fcn8.py, for more memory and
time.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes what is trained, and its learning rate."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_y",)
    for refiner in base.list_daes(config):
        refiner.title += " end to end"
        refiner.end_to_end = True
        refiner.objective.proposal_cross_entropy = 1.0
        refiner.training.optimizer.learning_rate = 1e-4
    return config
