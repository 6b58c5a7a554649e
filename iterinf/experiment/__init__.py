"""The whole run in order: train, choose on validation, test, report.

`modes.run` starts the stages that a mode needs; `stages.Experiment` opens the data and
trains, `choice` chooses and tests. Each resumes from the workdir.
"""

from iterinf.experiment.modes import MODES, run
from iterinf.experiment.stages import Experiment

__all__ = ["MODES", "Experiment", "run"]
