"""configs/quickstart.py at three seeds of training, on the same scenes.

python -m launch.grid --config=configs/quickstart_seeds.py --workdir=runs/seeds
"""

from configs import base, quickstart


def get_config():
    """Changes nothing: the grid does."""
    return quickstart.get_config()


grid = base.add_seeds
