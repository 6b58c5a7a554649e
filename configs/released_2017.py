"""FCN-8 and DAE(y) as in the code released in 2017, where it differs from the paper.

FCN-8: ReLU scores, deconvolutions that start by Glorot. DAE: linear decoder, skip
connections, all tied positions as switches, taken from passes with noise of their own,
at test too; squared error as a mean over classes; no weight decay; sigma .5. An image
stops where r(y) is near y, and counts no more in the choice, so that late iterations
are scored on hard images. Should do worse than configs/camvid_fcn8.py, and its
inference is noisy.
"""

from configs import camvid_fcn8


def get_config():
    """Changes networks and loss."""
    config = camvid_fcn8.get_config()
    config.segmenter.model.update(relu_scores=True, upsampling_init="glorot")
    config.refiners = ("dae_y",)
    config.segmenter.title += " of 2017"
    for refiner in config.refiner.values():
        refiner.model.update(
            relu_decoder=False,
            skip_connections=True,
            switches="tied",
            switch_noise=0.5,
        )
        refiner.objective.update(sigma=0.5, squared_error=1 / 11)
        refiner.training.optimizer.weight_decay = 0.0
        refiner.selection.update(stop=1e-3, count_stopped=False)
    return config
