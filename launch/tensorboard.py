"""What TensorBoard shows of a workdir: losses, sweeps, figures and the table.

    pip install tensorboardX tensorboard
    python -m launch.tensorboard WORKDIR --follow &
    tensorboard --logdir=WORKDIR/tensorboard

Writes event files from what the run leaves: metrics.jsonl of every network, a step an
epoch; curve.npz of every refiner, a run a step size and a step an iteration; the
pictures and the table of results/. --follow goes on while the run does, until its
table is there. Training itself knows nothing of TensorBoard.
"""

import json
import pathlib
import shutil
import sys
import time

import numpy as np
from absl import app, flags
from PIL import Image

from iterinf.files import read_arrays, read_lines
from launch.runs import is_finished

try:
    from tensorboardX import SummaryWriter
except ImportError:
    sys.exit("launch.tensorboard: it needs tensorboardX; pip install tensorboardX")

_FOLLOW = flags.DEFINE_boolean("follow", False, "Goes on until the run has ended.")
_SECONDS = 5  # between two looks at a run


class Events:
    """The event files of a workdir; each call of `add_metrics` adds what is new."""

    def __init__(self, workdir: pathlib.Path):
        """Begins anew: events of an earlier call go."""
        self._workdir = workdir
        self._folder = workdir / "tensorboard"
        self._num_written: dict[pathlib.Path, int] = {}
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, *parts: str) -> SummaryWriter:
        return SummaryWriter(str(self._folder.joinpath(*parts)))

    def add_metrics(self) -> None:
        """Adds the epochs of every network that stand there since the last call.

        When an epoch ended is told by the time of the file's last change and by the
        seconds of the epochs after it.
        """
        for path in sorted(self._workdir.glob("**/metrics.jsonl")):
            epochs = [json.loads(line) for line in read_lines(path)]
            seconds = np.array([epoch["seconds"] for epoch in epochs])
            ends = path.stat().st_mtime - (seconds.sum() - seconds.cumsum())
            first = self._num_written.get(path, 0)
            self._num_written[path] = max(first, len(epochs))
            name = str(path.parent.relative_to(self._workdir))
            with self._open(name) as writer:
                for epoch, end in list(zip(epochs, ends, strict=True))[first:]:
                    for tag in epoch.keys() - {"epoch"}:
                        writer.add_scalar(tag, epoch[tag], epoch["epoch"], end)

    def add_results(self) -> None:
        """Adds sweeps, figures and the table, of what is there."""
        for path in sorted(self._workdir.glob("refiners/*/curve.npz")):
            curve, refiner = read_arrays(path), f"refiners/{path.parent.name}"
            curves = zip(curve["step_sizes"], curve["mean_iou"], strict=True)
            for step_size, values in curves:
                with self._open(refiner, f"step_size={step_size:g}") as writer:
                    for iteration, value in enumerate(values, start=1):
                        writer.add_scalar("sweep/mean_iou", value, iteration)
        with self._open("results") as writer:
            for path in sorted(self._workdir.glob("results/figures/*.png")):
                picture = np.asarray(Image.open(path).convert("RGB"))
                writer.add_image(path.stem, picture, dataformats="HWC")
            table = self._workdir / "results" / "table.md"
            if table.exists():
                writer.add_text("table", table.read_text())


def _run(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("launch.tensorboard: expected one folder")
    workdir = pathlib.Path(argv[1])
    if not (workdir / "config.json").exists():
        sys.exit(f"launch.tensorboard: {workdir} is no workdir: it has no config.json")
    events = Events(workdir)
    events.add_metrics()
    while _FOLLOW.value and not is_finished(workdir):
        time.sleep(_SECONDS)
        events.add_metrics()
    events.add_results()
    print(f"tensorboard --logdir={workdir / 'tensorboard'}")


if __name__ == "__main__":
    app.run(_run)
