"""Section 4.3: transposed convolutions and skip connections in place of switches.

Expected: worse than configs/camvid_fcn8.py, because skip connections carry the noise of
y to the last layers, which cannot remove it on their own.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes the decoder of both DAEs."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.title += " transposed"
        refiner.model.update(decoder="transposed", skip_connections=True)
    return config
