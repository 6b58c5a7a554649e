"""FCN-8 and its refiners as in the code released in 2017, where it differs.

FCN-8: ReLU scores, Glorot-initialised deconvolutions. DAE: linear decoder, skip
connections, all tied positions as switches, taken from passes with noise of their own,
at test too; squared error as a mean over classes; no weight decay; sigma .5. An image
stops once r(y) is close to y and is then excluded from the choice, so that late
iterations are scored on hard images only. Context module: reads probabilities and the
image, with a random first layer. CRF: both kernels 3 pixels wide, at most 80
iterations. Expected: worse than configs/camvid_fcn8.py, with noisy DAE inference.
"""

from configs import base, camvid_fcn8


def get_config():
    """Changes the networks and the loss."""
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
    config.refiner.dense_crf.selection = create_dense_crf()["selection"]
    return config


def create_dense_crf():
    """Keys of the dense CRF of the 2017 code: only the iterations are chosen."""
    parameters = {
        "spatial_width": (3.0,),
        "spatial_weight": (3.0,),
        "bilateral_width": (3.0,),
        "color_width": (13.0,),
        "bilateral_weight": (10.0,),
    }
    selection = base.create_selection(parameters=parameters, num_iterations=80)
    return base.create_dense_crf("CRF, released 2017") | {"selection": selection}
