"""Shows a workdir, or those of a grid, in TensorBoard: losses, sweeps, figures, tables.

    pip install tensorboardX tensorboard
    python -m launch.tensorboard WORKDIR --follow &
    tensorboard --logdir=WORKDIR/tensorboard

Writes event files from what runs leave: metrics.jsonl of every network, a step an
epoch; curve.npz of every refiner, a run a step size and a step an iteration; pictures
and tables of results/. --follow continues until every table is written. Training itself
knows nothing of TensorBoard.
"""

import pathlib
import shutil
import sys
import time

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from iterinf.runtime.files import read_arrays
from iterinf.workdir import read_epochs
from launch.runs import is_finished

try:
    from tensorboardX import SummaryWriter
except ImportError:
    sys.exit("launch.tensorboard: it needs tensorboardX; pip install tensorboardX")

_FOLLOW = flags.DEFINE_boolean(
    "follow", False, "Continues until all runs are finished."
)
_SECONDS = 5  # between two looks


class Events:
    """The event files of a workdir, in its folder tensorboard/; to be closed."""

    def __init__(self, workdir: pathlib.Path):
        """Begins anew: those of an earlier call go."""
        self._workdir = workdir
        self._folder = workdir / "tensorboard"
        self._writers: dict[pathlib.Path, SummaryWriter] = {}
        self._num_epochs: dict[pathlib.Path, int] = {}  # that are written
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, folder: pathlib.Path) -> SummaryWriter:
        """The writer of a folder of the workdir."""
        if folder not in self._writers:
            path = self._folder / folder.relative_to(self._workdir)
            self._writers[folder] = SummaryWriter(str(path), flush_secs=_SECONDS)
        return self._writers[folder]

    def add_metrics(self) -> None:
        """Adds the epochs of every network that are new since the last call.

        The end of an epoch follows from the file's last change and the seconds of the
        later epochs.
        """
        for path in sorted(self._workdir.glob("**/metrics.jsonl")):
            epochs = read_epochs(path.parent)
            seconds = np.array([epoch["seconds"] for epoch in epochs])
            ends = path.stat().st_mtime - (seconds.sum() - seconds.cumsum())
            first = self._num_epochs.get(path, 0)
            self._num_epochs[path] = max(first, len(epochs))
            writer = self._open(path.parent)
            for epoch, end in list(zip(epochs, ends, strict=True))[first:]:
                for tag in epoch.keys() - {"epoch"}:
                    writer.add_scalar(tag, epoch[tag], epoch["epoch"], end)

    def add_results(self) -> None:
        """Adds the sweeps, figures and tables that exist."""
        for path in sorted(self._workdir.glob("**/refiners/*/curve.npz")):
            curve = read_arrays(path)
            curves = zip(curve["step_sizes"], curve["mean_iou"], strict=True)
            for step_size, values in curves:
                writer = self._open(path.parent / f"step_size={step_size:g}")
                values = [curve["initial_mean_iou"], *values]
                for iteration, value in enumerate(values):
                    writer.add_scalar("sweep/mean_iou", value, iteration)
        for path in sorted(self._workdir.glob("**/results/figures/*.png")):
            picture = np.asarray(Image.open(path).convert("RGB"))
            writer = self._open(path.parent.parent)
            writer.add_image(path.stem, picture, dataformats="HWC")
        for path in sorted(self._workdir.glob("**/results/table.md")):
            self._open(path.parent).add_text("table", path.read_text())

    def close(self) -> None:
        """Ends the files."""
        for writer in self._writers.values():
            writer.close()


def _run(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("launch.tensorboard: expected one folder")
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the run
    workdir = pathlib.Path(argv[1])
    if not any(workdir.glob("**/config.json")):
        sys.exit(f"launch.tensorboard: {workdir} is no workdir: it has no config.json")
    events = Events(workdir)
    events.add_metrics()
    while _FOLLOW.value and not _have_all_finished(workdir):
        time.sleep(_SECONDS)
        events.add_metrics()
    events.add_results()
    events.close()
    print(f"tensorboard --logdir={workdir / 'tensorboard'}")


def _have_all_finished(folder: pathlib.Path) -> bool:
    return all(is_finished(path.parent) for path in folder.glob("**/config.json"))


if __name__ == "__main__":
    app.run(_run)
