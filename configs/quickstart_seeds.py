"""configs/quickstart.py at three training seeds, on the same scenes.

python -m launch.grid --config=configs/quickstart_seeds.py --workdir=runs/seeds
"""

from configs import base, quickstart


def get_config():
    """Changes nothing: the grid sets the seeds."""
    return quickstart.get_config()


grid = base.add_seeds
