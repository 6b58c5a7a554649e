"""A whole experiment in seconds: configs/base.py made tiny."""

from configs import base


def get_config():
    """Street scenes of 32x48, networks of a few channels, two epochs."""
    config = base.get_config()
    config.dataset.options.update(
        height=32, width=48, num_train=8, num_validation=3, num_test=4
    )  # as many batches of validation as of test: one program does both
    config.segmenter.model.update(width=1 / 32, padding="same")
    config.segmenter.training.update(batch_size=4, crop_size=(32, 32), num_epochs=2)
    config.refiners = ("dae_ytrue", "dae_y")
    for refiner in base.list_daes(config):
        refiner.model.update(widths=(4, 6, 8), features=("pool2",))
        refiner.selection.update(
            step_sizes=(0.1, 1.0), num_iterations=3, damped_step_sizes=(0.5, 1.0)
        )
        refiner.training.update(
            batch_size=4, crop_size=(32, 32), num_epochs=2, ema_decay=0.5
        )
    for name in ("context_module", "crf_rnn"):
        config.refiner[name].training.update(
            batch_size=4, crop_size=(32, 32), num_epochs=2
        )
    config.refiner.crf_rnn.selection.num_iterations = 3
    config.refiner.crf_rnn.model.exact = True  # compiles faster than the lattice
    for name in ("dense_crf", "dense_crf_after_dae_y"):
        config.refiner[name].model.exact = True
        config.refiner[name].selection.update(
            num_iterations=3,
            parameters={
                "spatial_width": (3.0,),
                "spatial_weight": (1.0,),
                "bilateral_width": (3.0, 20.0),
                "color_width": (13.0,),
                "bilateral_weight": (1.0, 3.0),
            },
        )
    config.checkpoint_seconds = 0.0
    config.evaluation.update(batch_size=2, sweep_batch_size=2, num_resamples=50)
    return config
