"""configs/quickstart.py at three seeds of training, on the same scenes.

python -m launch.grid --config=configs/quickstart_seeds.py --workdir=runs/seeds
"""

from configs import quickstart


def get_config():
    """Changes nothing: the grid does."""
    return quickstart.get_config()


def grid(add):
    """Seeds 0, 1 and 2."""
    for seed in range(3):
        add(seed=seed)
