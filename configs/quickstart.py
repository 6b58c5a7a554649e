"""The whole experiment on the embedded street scenes, in minutes on a laptop.

python -m iterinf.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import base


def get_config():
    """Small networks, small images, short schedules."""
    config = base.get_config()
    config.dataset.name = "streets"
    config.dataset.options = {
        "seed": 0,
        "height": 64,
        "width": 96,
        "num_train": 300,
        "num_validation": 60,
        "num_test": 120,
    }
    segmenter = config.segmenter
    segmenter.model.update(width=0.125, padding="same")
    segmenter.training.update(crop_size=(64, 64), num_epochs=30, patience=6)
    segmenter.training.optimizer.update(learning_rate=1e-3, decay_per_epoch=0.97)
    for refiner in config.refiner.values():
        refiner.model.update(
            widths=(16, 32, 64, 128, 128), relu_decoder=False, skip_connections=True
        )
        refiner.training.update(crop_size=(64, 64), num_epochs=20, patience=10)
        refiner.training.optimizer = {
            "name": "adam",
            "learning_rate": 2e-3,
            "decay_per_epoch": 0.95,
            "weight_decay": 1e-4,
            "options": {},
        }
    config.evaluation.batch_size = 10
    return config
