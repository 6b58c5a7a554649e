"""Many runs of one config: expands its grid, runs what is left, makes a table of all.

    python -m launch.grid --config=configs/quickstart_seeds.py --workdir=runs/seeds

A config file with a grid defines, beside `get_config`,

    def grid(add):
        for seed in range(3):
            add(seed=seed, **{"refiner.dae_y.objective.sigma": 0.2})

and every call of `add` is a run with these keys changed. Each has a workdir under
--workdir, named by its changes, e.g. runs/seeds/seed=1. Finished runs are skipped and
interrupted ones resume; a run that differs from a finished one only in its refiners
reuses its segmenter. If a run fails the others still run, and this script ends with
status 1; if one was interrupted, with 75 ("try again"). Flags after -- are passed to
every run. table.{md,csv,json} holds the runs finished so far (launch/grid_table.py).

--jobs runs several at once, each of which prints to log.txt in its workdir;
--devices=0,1 does so with a GPU for each. --slurm submits launch/slurm.sh for each
instead; when all jobs are done, call again with --jobs=0, which runs nothing, for the
table. --dry_run only prints the commands.
"""

import json
import pathlib
import queue
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from absl import app, flags

from iterinf.config import check_settings, flatten
from iterinf.errors import UserError
from iterinf.runtime.files import create_folder
from launch.grid_table import write_grid_table
from launch.runs import (
    JOBS,
    MAIN,
    UNFINISHED,
    WORKDIR,
    Launcher,
    copy_segmenter,
    describe_segmenter,
    is_finished,
    read_config_file,
)

SLURM = pathlib.Path(__file__).with_name("slurm.sh")
_MOST_CHARACTERS = 200  # of the name of a workdir

_CONFIG = flags.DEFINE_string("config", None, "A file of configs/ with a grid.")
_DEVICES = flags.DEFINE_list("devices", [], "GPUs: a run at once on each.")
_SLURM = flags.DEFINE_boolean("slurm", False, "Submits the runs by sbatch.")
_SBATCH = flags.DEFINE_string("sbatch", "", "Flags of sbatch, e.g. '--gpus-per-node=1'")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Prints commands and runs none.")


class Run(NamedTuple):
    """A run of a grid."""

    name: str  # of its workdir
    setting: dict[str, Any]  # values by the dotted keys that the run changes
    segmenter: str  # equal for runs that train equal segmenters

    @property
    def flags(self) -> list[str]:
        """The setting, as flags of iterinf.main; what is None is so without one."""
        return [
            f"--config.{key}={value}"
            for key, value in self.setting.items()
            if value is not None
        ]


def expand_grid(path: pathlib.Path, *, optional: bool = False) -> list[Run]:
    """The runs of a config's grid, in its order.

    Args:
      path: of the config file.
      optional: whether a config without a grid is a grid of one unchanged run.

    Raises:
      UserError: if the file holds no config or no grid; a key or a value that cannot
        be; two runs that are the same.
    """
    names = read_config_file(path)
    if "grid" not in names and not optional:
        raise UserError(f"{path} defines no grid(add)")
    settings: list[dict[str, Any]] = []
    try:
        names.get("grid", _add_one)(lambda **setting: settings.append(setting))
        runs = [_make_run(names["get_config"]().lock(), s) for s in settings]
    except UserError as error:
        raise UserError(f"the grid of {path}: {error}") from error
    except Exception as error:  # whatever the user's file, or the config, raises
        reason = str(error.args[0] if error.args else error).replace("\n", "; ")
        raise UserError(f"the grid of {path}: {reason}") from error
    if not runs:
        raise UserError(f"the grid of {path} is empty")
    found = [run.name for run in runs]
    for name in found:
        if found.count(name) > 1:
            raise UserError(f"the grid of {path} has two runs {name}")
    return runs


def _add_one(add: Callable[..., None]) -> None:
    add()


def _make_run(config: Any, setting: dict[str, Any]) -> Run:
    """A run of a config, which is changed: it checks keys and types of the setting."""
    setting, defaults = flatten(setting), flatten(config.to_dict())
    for key, value in setting.items():
        if value is None and defaults.get(key) is not None:
            raise UserError(f"no flag can set {key} to None; the config may")
    config.update_from_flattened_dict(setting)
    check_settings(json.loads(config.to_json()))
    resolved = flatten(config.to_dict())
    setting = {key: resolved[key] for key in setting}
    return Run(name_run(setting), setting, describe_segmenter(config))


def name_run(setting: dict[str, Any]) -> str:
    """The name of a workdir: seed=1,refiner.dae_y.objective.sigma=0.2, say.

    Its end is a checksum where it would be too long for a file system.
    """
    parts = []
    for key, value in setting.items():
        values = value if isinstance(value, tuple) else (value,)
        text = "+".join(map(str, values))
        parts.append(f"{key}={re.sub('[^A-Za-z0-9.+-]', '_', text)}")
    name = ",".join(parts) or "unchanged"
    if len(name) <= _MOST_CHARACTERS:
        return name
    return f"{name[: _MOST_CHARACTERS - 8]}{zlib.crc32(name.encode()):08x}"


def run_grid(
    config: str,
    runs: Sequence[Run],
    root: pathlib.Path,
    overrides: Sequence[str],
    *,
    jobs: int,
    devices: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Runs what is not finished; on SIGINT or SIGTERM it ends early.

    Args:
      config: path of the config file.
      runs: of its grid.
      root: folder of the workdirs.
      overrides: flags handed to every run.
      jobs: how many at once; above one, each prints to a file.
      devices: CUDA_VISIBLE_DEVICES of as many jobs; none: as it is.

    Returns:
      Names of the runs that failed, and of those that are not finished.
    """
    failed, unfinished = [], []
    launcher = Launcher()
    environments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for job in range(jobs):
        environments.put({"CUDA_VISIBLE_DEVICES": devices[job]} if devices else {})

    def go_on(run: Run) -> None:
        workdir = root / run.name
        if is_finished(workdir):
            return
        if launcher.is_stopped():
            unfinished.append(run.name)
            return
        log = workdir / "log.txt" if jobs > 1 else None
        flags = [*overrides, *run.flags]
        print(f"\n{run.name}", flush=True)
        environment = environments.get()
        try:
            _take_over_segmenter(run, runs, root)
            if log:
                create_folder(workdir)
            if not launcher.run(
                config, workdir, flags, log=log, environment=environment
            ):
                unfinished.append(run.name)
        except (UserError, OSError) as error:
            failed.append(run.name)
            reason = f"{error}, see {log}" if log and log.exists() else error
            print(f"launch.grid: {run.name}: {reason}", file=sys.stderr, flush=True)
        finally:
            environments.put(environment)

    with launcher, ThreadPoolExecutor(jobs) as pool:
        list(pool.map(go_on, runs))
    return failed, unfinished


def _take_over_segmenter(run: Run, runs: Sequence[Run], root: pathlib.Path) -> None:
    """Copies the segmenter of a finished run that has the same, unless there is one."""
    for other in runs:
        if other.segmenter == run.segmenter and is_finished(root / other.name):
            copy_segmenter(root / other.name, root / run.name)


def make_command(
    config: str,
    run: Run,
    root: pathlib.Path,
    overrides: Sequence[str],
    *,
    sbatch: Sequence[str] | None = None,
) -> list[str]:
    """The command of a run, here, or with `sbatch`, flags of sbatch, under SLURM."""
    command = [*MAIN]
    if sbatch is not None:
        command = ["sbatch", f"--job-name={run.name}", *sbatch, str(SLURM)]
    return [
        *command,
        *(f"--config={config}", f"--workdir={root / run.name}"),
        *(*overrides, *run.flags),
    ]


def _run(argv: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    try:
        sys.exit(_launch(str(_CONFIG.value), pathlib.Path(WORKDIR.value or ""), argv))
    except UserError as error:
        sys.exit(f"launch.grid: {error}")


def _launch(config: str, root: pathlib.Path, argv: list[str]) -> int:
    """Does what the flags say; returns the exit status."""
    runs, overrides = expand_grid(pathlib.Path(config)), argv[1:]
    for flag in overrides:
        key = flag.partition("=")[0].removeprefix("--config.")
        if any(key in run.setting for run in runs):
            raise UserError(f"{flag} would change what the grid of {config} sets")
    _check_flags(overrides)
    if _SLURM.value or _DRY_RUN.value:
        sbatch = shlex.split(_SBATCH.value or "") if _SLURM.value else None
        for run in runs:
            if not is_finished(root / run.name):
                if not _DRY_RUN.value:
                    _take_over_segmenter(run, runs, root)
                command = make_command(config, run, root, overrides, sbatch=sbatch)
                _submit(command, dry_run=bool(_DRY_RUN.value))
        return 0
    create_folder(root)
    failed: list[str] = []
    unfinished: list[str] = []
    devices = _DEVICES.value or []
    jobs = len(devices) or JOBS.value
    if jobs:
        failed, unfinished = run_grid(
            config, runs, root, overrides, jobs=jobs, devices=devices
        )
    write_grid_table([(root / run.name, run.setting) for run in runs], root)
    for names, what in ((failed, "failed"), (unfinished, "unfinished")):
        if names:
            print(f"{what}: {', '.join(names)}; the same command resumes")
    return 1 if failed else UNFINISHED if unfinished else 0


def _check_flags(overrides: Sequence[str]) -> None:
    """Raises UserError for flags that cannot go together."""
    if _DEVICES.value and (JOBS.present or _SLURM.value):
        raise UserError(
            "--devices runs a job on each GPU that it names, expected it without "
            "--jobs and --slurm"
        )
    names = [flag.lstrip("-").partition("=")[0] for flag in overrides]
    if _SLURM.value and "mode" in names:
        raise UserError(
            "--slurm queues a job again until all stages are done, expected no --mode"
        )


def _submit(command: Sequence[str], *, dry_run: bool) -> None:
    """Prints a command, and runs it.

    Raises:
      UserError: if sbatch is not there, or refuses.
    """
    print(shlex.join(command), flush=True)
    if dry_run:
        return
    try:
        status = subprocess.run(command).returncode
    except FileNotFoundError as error:
        raise UserError("there is no sbatch here; --slurm needs SLURM") from error
    if status:
        raise UserError(f"sbatch ended with status {status}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_run)
