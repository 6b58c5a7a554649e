"""Training where the loop goes, at equal compute, on streets, at three seeds.

Three DAE(y): trained at the segmenter's y alone, as everywhere else (78 epochs);
self-conditioned, at points between y and r(y); and recycled, at two of its own iterates
too. The control without y trains as the first.

python -m launch.evidence --only=quickstart_recycling --workdir=runs/evidence
"""

from configs import base, quickstart


def get_config():
    """Keeps the quickstart's segmenter, with four DAEs as its only refiners."""
    config = quickstart.get_config()
    for refiner in base.list_daes(config):
        refiner.training.update(num_epochs=78, patience=18)
        refiner.training.optimizer.decay_per_epoch = 0.972
    config.refiners = ("dae_no_y", "dae_y")
    add_variants(config)
    return config


def add_variants(config):
    """Adds a self-conditioned and a recycled DAE(y) of the same compute before dae_y.

    A step of these takes 1.5 and 3 times as long, so they get fewer epochs, with a
    learning rate that falls as fast per second.
    """
    variants = {
        "self_conditioned": (1.5, {"self_conditioning": 0.6}),
        "recycled": (3, {"num_recycles": 2}),
    }
    for variant, (cost, objective) in variants.items():
        refiner = config.refiner.dae_y.copy_and_resolve_references()
        refiner.title = f"DAE(y), {variant.replace('_', '-')}"
        refiner.objective.update(objective)
        training = refiner.training
        training.num_epochs = round(training.num_epochs / cost)
        training.patience = round(training.patience / cost)
        training.optimizer.decay_per_epoch **= cost
        config.refiner[f"dae_y_{variant}"] = refiner
    *others, main = config.refiners
    config.refiners = (*others, *(f"dae_y_{variant}" for variant in variants), main)


grid = base.add_seeds
