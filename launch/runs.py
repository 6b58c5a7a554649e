"""Experiments in separate processes, for the other launch scripts."""

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
    """Returns the names that a config file defines, after a call of its get_config().

    Raises:
      UserError: If the file holds no config.
    """
    try:
        names = runpy.run_path(str(path))
        names["get_config"]()
    except Exception as error:  # whatever the user's file raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read a config from {path} ({reason})") from error
    return names


def describe_segmenter(config: ConfigDict) -> str:
    """Returns a config without refiners, as JSON: equal ones train equal segmenters."""
    settings = json.loads(config.to_json())
    settings.pop("refiner"), settings.pop("refiners")
    return json.dumps(settings, sort_keys=True)


def is_finished(workdir: pathlib.Path) -> bool:
    """Whether an experiment is finished."""
    return (workdir / "results" / "table.json").exists()


def copy_segmenter(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a workdir with its trained segmenter, without refiners, unless it exists.

    Raises:
      UserError: If writing fails; the target then has no segmenter.
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
    """Runs experiments; a context that passes SIGINT and SIGTERM on to them."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()

    def is_stopped(self) -> bool:
        """Whether a signal has arrived; no run starts after that."""
        return self._signal is not None

    def __enter__(self) -> "Launcher":
        """Installs the handlers; only possible in the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {n: signal.signal(n, self._pass_on) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: object) -> None:
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
        """Starts a process that receives every signal, even one during its start."""
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
        """Runs or resumes an experiment; several threads may do so at once.

        Args:
          config: The path of a config file.
          workdir: The workdir of the experiment.
          overrides: Flags passed to it.
          seconds: The time limit; None for no limit.
          log: A file for its output; None for that of this process.
          environment: Environment variables in addition to those of this process.

        Returns:
          Whether it finished.

        Raises:
          UserError: If it ended with an error, which it has printed.
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
