"""DAEs conditioned on the image and on all pools up to pool4, started as the identity.

The variant that transferred best to unseen clips at half size (docs/results.md), at
full size.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes h and the initialisation."""
    config = camvid_fcn8.get_config()
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.title += " of all pools"
        refiner.model.update(
            features=("input", "pool1", "pool2", "pool3", "pool4"),
            relu_decoder=False,
            skip_connections=True,
            start_as_identity=True,
        )
    return config
