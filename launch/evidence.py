"""Runs and resumes all experiments of docs/results.md, and writes their tables.

    python -m launch.evidence --workdir=runs/evidence --minutes=170 \
        -- --config.dataset.options.path=PATH_OF_CAMVID

Runs the configs below one after the other, each at every setting of its grid, in
workdirs under --workdir/CONFIG. Finished runs are skipped and interrupted ones resume;
a run reuses the segmenter of a finished one with the same settings. --only names some
of the configs. When --minutes are over, the run in progress saves and this script ends
with status 75: the same command resumes. After each call evidence.md holds the tables
of the runs finished so far. Flags after -- are passed to every run on CamVid.
"""

import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import app, flags

from iterinf.errors import UserError
from iterinf.runtime.files import create_folder, write_atomically
from launch.grid import expand_grid, run_grid
from launch.grid_table import write_grid_table
from launch.runs import MINUTES, UNFINISHED, WORKDIR, copy_segmenter, is_finished

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"

_ONLY = flags.DEFINE_list("only", [], "Names of configs below; none: all.")


class Question(NamedTuple):
    """A question, and the config whose grid of runs answers it."""

    title: str
    config: str  # stem of a file of configs/
    on_camvid: bool


QUESTIONS = (
    Question("Generated streets, three seeds", "quickstart_seeds", False),
    Question(
        "Does training where the loop goes make it pay?", "quickstart_recycling", False
    ),
    Question("CamVid at half size, FCN-8, three seeds", "camvid_small_seeds", True),
    Question("CamVid at half size, FCN-8 from VGG16", "camvid_vgg16_seeds", True),
    Question(
        "CamVid at half size, FC-DenseNet, three seeds",
        "camvid_small_densenet_seeds",
        True,
    ),
    Question(
        "Ablations and the code of 2017, half size", "camvid_small_ablations", True
    ),
)


def choose_questions(names: Sequence[str]) -> list[Question]:
    """Picks questions by their config; all if no name is given.

    Raises:
      UserError: for a name that there is not.
    """
    known = {question.config: question for question in QUESTIONS}
    for name in names:
        if name not in known:
            raise UserError(f"--only={name} is unknown; known: {', '.join(known)}")
    return [known[name] for name in names or known]


def answer(
    questions: Sequence[Question],
    root: pathlib.Path,
    overrides: Sequence[str],
    *,
    seconds: float | None = None,
) -> tuple[list[str], list[str]]:
    """Runs what is not finished, then writes root/evidence.md.

    Args:
      questions: in this order.
      root: folder of the workdirs.
      overrides: flags for the runs on CamVid.
      seconds: time limit; None: none.

    Returns:
      Names of the runs that failed, and of those that are not finished.
    """
    started, failed, unfinished = time.monotonic(), [], []
    trained: dict[str, pathlib.Path] = {}
    for question in questions:
        path, folder = CONFIGS / f"{question.config}.py", root / question.config
        runs = expand_grid(path, optional=True)
        create_folder(folder)
        for run in runs:
            if run.segmenter in trained and not is_finished(folder / run.name):
                copy_segmenter(trained[run.segmenter], folder / run.name)
        left = None if seconds is None else seconds - (time.monotonic() - started)
        if left is None or left > 0:
            flags_of_runs = overrides if question.on_camvid else ()
            with _Alarm(left):
                lost, _ = run_grid(str(path), runs, folder, flags_of_runs, jobs=1)
            failed += [f"{question.config}/{name}" for name in lost]
        for run in runs:
            if is_finished(folder / run.name):
                trained.setdefault(run.segmenter, folder / run.name)
            elif f"{question.config}/{run.name}" not in failed:
                unfinished.append(f"{question.config}/{run.name}")
        write_grid_table([(folder / run.name, run.setting) for run in runs], folder)
    _write_answers(questions, root)
    return failed, unfinished


class _Alarm:
    """Sends SIGTERM, which `run_grid` passes on, after some seconds."""

    def __init__(self, seconds: float | None):
        self._timer = threading.Timer(seconds or 0, self._send) if seconds else None

    def _send(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> None:
        if self._timer:
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()


def _write_answers(questions: Sequence[Question], root: pathlib.Path) -> None:
    """The tables of all grids that have one, one below the other."""
    parts = ["# Evidence"]
    for question in questions:
        table = root / question.config / "table.md"
        text = table.read_text() if table.exists() else "No run is finished yet.\n"
        parts.append(f"## {question.title}\n\n`configs/{question.config}.py`\n\n{text}")
    write_atomically({root / "evidence.md": "\n\n".join(parts).encode()})


def _run(argv: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    try:
        failed, unfinished = answer(
            choose_questions(_ONLY.value),
            pathlib.Path(str(WORKDIR.value)),
            argv[1:],
            seconds=None if MINUTES.value is None else 60 * MINUTES.value,
        )
    except UserError as error:
        sys.exit(f"launch.evidence: {error}")
    for names, what in ((failed, "failed"), (unfinished, "unfinished")):
        if names:
            print(f"{what}: {', '.join(names)}; the same command resumes")
    sys.exit(1 if failed else UNFINISHED if unfinished else 0)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(_run)
