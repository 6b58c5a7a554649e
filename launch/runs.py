"""Experiments in processes of their own: what launch.table1 and launch.grid share."""

import contextlib
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from iterinf.errors import UserError
from iterinf.runtime.files import create_folder

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h
MAIN = (sys.executable, "-m", "iterinf.main")
JOBS = flags.DEFINE_integer("jobs", 1, "Processes at once.", lower_bound=0)
MINUTES = flags.DEFINE_float("minutes", None, "Time limit of this call.")
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a workdir a run, and the table.")
_GRACE = 60  # seconds to save in, before a run is killed


def read_config_file(path: pathlib.Path) -> dict[str, Any]:
    """The names that a config file defines; calling its get_config() will work.

    Raises:
      UserError: if the file holds no config.
    """
    try:
        names = runpy.run_path(str(path))
        names["get_config"]()
    except Exception as error:  # whatever the user's file raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read a config from {path} ({reason})") from error
    return names


def describe_segmenter(config: ConfigDict) -> str:
    """A config without its refiners, as JSON: equal ones train equal segmenters."""
    settings = json.loads(config.to_json())
    settings.pop("refiner"), settings.pop("refiners")
    return json.dumps(settings, sort_keys=True)


def is_finished(workdir: pathlib.Path) -> bool:
    """Whether an experiment has come to its end."""
    return (workdir / "results" / "table.json").exists()


def copy_segmenter(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a workdir, its segmenter trained, without refiners, if there is no target.

    Raises:
      UserError: if writing fails; the target then has no segmenter.
    """
    if (target / "segmenter").exists():
        return
    create_folder(target)
    copy = target / "segmenter.tmp"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(source / "segmenter", copy)
        for name in ("config.json", "data.json", "runs.jsonl"):
            shutil.copy(source / name, target)
        copy.rename(target / "segmenter")
    except OSError as error:
        shutil.rmtree(copy, ignore_errors=True)
        reason = error.strerror or error.args[0][0][2]  # the first that copytree lists
        raise UserError(f"cannot copy {source} to {target}: {reason}") from error


class Launcher:
    """Runs experiments; a context that hands SIGINT and SIGTERM on to them."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()

    def is_stopped(self) -> bool:
        """Whether one of them has come; no run begins after that."""
        return self._signal is not None

    def __enter__(self) -> "Launcher":
        """Starts to listen; in the main thread alone, as Python wants it."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {n: signal.signal(n, self._hand_on) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hand_on(self, number: int, _: object) -> None:
        self._signal = number
        for process in list(self._processes):
            process.send_signal(number)

    @contextlib.contextmanager
    def _start(
        self,
        command: Sequence[str],
        log: pathlib.Path | None,
        environment: Mapping[str, str],
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A process that gets all signals, also one that comes while it starts."""
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(log.open("ab")) if log else None
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | environment
            )
            self._processes.add(process)
            stack.callback(self._processes.discard, process)
            if self._signal is not None:
                process.send_signal(self._signal)
            yield process

    def run(
        self,
        config: str,
        workdir: pathlib.Path,
        overrides: Sequence[str],
        *,
        seconds: float | None = None,
        log: pathlib.Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Runs or goes on with one experiment; several threads may, at once.

        Args:
          config: path of a config file.
          workdir: of the experiment.
          overrides: flags handed on.
          seconds: when to stop it; None: never.
          log: gets what it prints; None: this process's own output.
          environment: variables that it gets besides this process's own.

        Returns:
          Whether it is finished.

        Raises:
          UserError: if it ended with an error; its sentence has been printed by then.
        """
        if self.is_stopped():
            return False
        flags = [f"--config={config}", f"--workdir={workdir}", *overrides]
        with self._start([*MAIN, *flags], log, environment) as process:
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()  # in a long compiled call; it will be repeated
                    process.wait()
                return False
        if self.is_stopped():
            return False
        if status:
            raise UserError(f"{config} ended with status {status}")
        return True
