"""Recycling compared with DAE(y) at equal compute, on streets, at three seeds.

A step with two recycles costs three passes, so DAE(y) without recycling gets three
times the epochs, with a learning rate that falls as slowly per pass: 78 epochs of decay
.972 instead of 26 of .92. So does the control without y.

python -m launch.grid --config=configs/quickstart_recycling.py --workdir=runs/recycling
"""

from configs import base, quickstart


def get_config():
    """Keeps the quickstart's segmenter, with three DAEs as its only refiners."""
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
