"""Training where the loop goes, at equal compute, on streets, at three seeds.

Three DAE(y): trained at the segmenter's y alone, as everywhere else; self-conditioned, at
points between y and r(y); and recycled, at two of its own iterates too. A step of these
takes 1.5 and 3 times as long, so they get fewer epochs, with a learning rate that falls
as slowly per second: 78 epochs of decay .972, 52 of .958 and 26 of .92. The control
without y trains as the first.

python -m launch.evidence --only=quickstart_recycling --workdir=runs/evidence
"""

from configs import base, quickstart


def get_config():
    """Keeps the quickstart's segmenter, with four DAEs as its only refiners."""
    config = quickstart.get_config()
    for refiner in base.list_daes(config):
        refiner.training.update(num_epochs=78, patience=18)
        refiner.training.optimizer.decay_per_epoch = 0.972
    variants = {
        "self_conditioned": (52, 0.958, {"self_conditioning": 0.6}),
        "recycled": (26, 0.92, {"num_recycles": 2}),
    }
    for variant, (num_epochs, decay, objective) in variants.items():
        refiner = config.refiner.dae_y.copy_and_resolve_references()
        refiner.title = f"DAE(y), {variant.replace('_', '-')}"
        refiner.objective.update(objective)
        refiner.training.num_epochs = num_epochs
        refiner.training.optimizer.decay_per_epoch = decay
        config.refiner[f"dae_y_{variant}"] = refiner
    config.refiners = ("dae_no_y", "dae_y_recycled", "dae_y_self_conditioned", "dae_y")
    return config


grid = base.add_seeds
