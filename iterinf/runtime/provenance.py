"""The provenance of results: runs.jsonl, with one line per run."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess

import jax

from iterinf.runtime.files import read_json_lines, read_lines, write_lines


def log_run(workdir: pathlib.Path, command: str) -> None:
    """Appends this run to runs.jsonl in the workdir."""
    path = workdir / "runs.jsonl"
    device = jax.devices()[0]
    run = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": read_commit(pathlib.Path(__file__).parents[2]),
        "hardware": f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": f"jax {jax.__version__}, Python {platform.python_version()}",
    }
    write_lines(path, [*read_lines(path), json.dumps(run)])


def describe_runs(workdir: pathlib.Path) -> dict[str, str]:
    """Describes the runs: the last command, and all commits, hardware and versions."""
    runs = read_json_lines(workdir / "runs.jsonl")
    words = shlex.split(runs[-1]["command"])
    described = {"command": shlex.join(w for w in words if not w.startswith("--mode="))}
    for key in ("commit", "hardware", "versions"):
        described[key] = "; ".join(dict.fromkeys(run[key] for run in runs))
    return described


def read_commit(checkout: pathlib.Path) -> str:
    """Returns the commit of a checkout, with + for local changes, or "unknown"."""
    if not (checkout / ".git").exists():
        return "unknown"  # installed, perhaps inside another project's checkout
    try:
        commit, changed = (
            subprocess.run(
                ["git", *command],
                cwd=checkout,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit[:12] + ("+" if changed else "")
