"""FCN-8 and its refiners as in the code released in 2017, where that differs.

FCN-8: ReLU scores, deconvolutions that start by Glorot. DAE: linear decoder, skip
connections, all tied positions as switches, taken from passes with noise of their own,
at test too; squared error as a mean over classes; no weight decay; sigma .5. An image
stops where r(y) is near y, and counts no more in the choice, so that late iterations
are scored on hard images. Context module: of probabilities and the image, its first
layer drawn at random. CRF: both kernels 3 pixels wide, 80 iterations at most. Should do
worse than configs/camvid_fcn8.py, and the inference of the DAE is noisy.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes networks and loss."""
    config = camvid_fcn8.get_config()
    config.segmenter.model.update(relu_scores=True, upsampling_init="glorot")
    config.refiners = ("dense_crf", "context_module", "dae_y")
    config.segmenter.title += " of 2017"
    for refiner in base.list_daes(config):
        refiner.model.update(
            relu_decoder=False,
            skip_connections=True,
            switches="tied",
            switch_noise=0.5,
        )
        refiner.objective.update(sigma=0.5, squared_error=1 / 11)
        refiner.training.optimizer.weight_decay = 0.0
        refiner.selection.update(stop=1e-3, count_stopped=False)
    config.refiner.context_module.model.update(
        inputs="probabilities", use_image=True, first_init="glorot", padding="once"
    )
    config.refiner.dense_crf.selection = base.create_dense_crf_2017().selection
    return config
