"""Recycling against the plain DAE(y) of equal compute, on streets, at three seeds.

A step with two recycles costs three passes, so that the plain DAE has three times the
epochs, its rate falling as slowly per pass: 78 epochs of decay .972 for 26 of .92. So
has the control without y.

python -m launch.grid --config=configs/quickstart_recycling.py --workdir=runs/recycling
"""

from configs import base, quickstart


def get_config():
    """The quickstart's segmenter, and three DAEs in place of its other refiners."""
    config = quickstart.get_config()
    recycled = config.refiner.dae_y.copy_and_resolve_references()
    recycled.title = "DAE(y), recycled"
    recycled.objective.num_recycles = 2
    recycled.training.num_epochs = 26
    recycled.training.optimizer.decay_per_epoch = 0.92
    for refiner in base.list_daes(config):
        refiner.training.update(num_epochs=78, patience=18)
        refiner.training.optimizer.decay_per_epoch = 0.972
    config.refiner.dae_y_recycled = recycled
    config.refiners = ("dae_no_y", "dae_y_recycled", "dae_y")
    return config


grid = base.add_seeds
