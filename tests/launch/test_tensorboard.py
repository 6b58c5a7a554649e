"""What TensorBoard is given, read back from its files."""

import json
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from launch.tensorboard import Events

ROOT = pathlib.Path(__file__).parents[2]


def read_events(folder):
    """The values of all event files of a folder, with their events, in order.

    A record is its length in 8 bytes, a checksum of 4, the event, a checksum of 4.
    """
    values = []
    for path in sorted(folder.glob("events*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            values += [(event, value) for value in event.summary.value]
            content = content[16 + length :]
    return values


def write_epochs(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    epochs = [
        {"epoch": epoch, "train/loss": 1 / epoch, "seconds": 10.0}
        for epoch in range(1, number + 1)
    ]
    path.write_text("".join(f"{json.dumps(epoch)}\n" for epoch in epochs))


def list_losses(folder):
    return [
        (event.step, pytest.approx(value.simple_value))
        for event, value in read_events(folder)
        if value.tag == "train/loss"
    ]


def test_epochs_are_added_once(tmp_path):
    logs = [
        tmp_path / name / "metrics.jsonl"
        for name in ("segmenter", "refiners/dae_y", "refiners/dae_y/fine_tuning")
    ]
    for log in logs[:2]:
        write_epochs(log, 2)
    events = Events(tmp_path)
    events.add_metrics()
    with logs[1].open("a") as file:
        file.write('{"epoch": 3, "train')  # a line that is being written
    write_epochs(logs[2], 1)
    events.add_metrics()
    write_epochs(logs[1], 4)
    events.add_metrics()
    events.close()
    folders = [
        tmp_path / "tensorboard" / log.parent.relative_to(tmp_path) for log in logs
    ]
    assert list_losses(folders[0]) == [(1, 1.0), (2, 0.5)]
    found = read_events(folders[0])
    assert {value.tag for _, value in found} == {"train/loss", "seconds"}
    end = logs[0].stat().st_mtime
    assert {end - event.wall_time for event, _ in found} == {10.0, 0.0}
    assert list_losses(folders[1]) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert list_losses(folders[2]) == [(1, 1.0)]
    again = Events(tmp_path)
    again.add_metrics()
    again.close()
    assert len(list_losses(folders[1])) == 4


def test_sweeps_figures_and_tables(tmp_path):
    run, shown = tmp_path / "seed=1", tmp_path / "tensorboard" / "seed=1"
    (run / "refiners" / "dae_y").mkdir(parents=True)
    np.savez(
        run / "refiners" / "dae_y" / "curve.npz",
        step_sizes=[0.5, 1.0],
        mean_iou=[[0.2, 0.3], [0.4, 0.5]],
        initial_mean_iou=0.1,
    )
    (run / "results" / "figures").mkdir(parents=True)
    picture = Image.new("RGB", (5, 3))
    picture.save(run / "results" / "figures" / "figure3.png")
    (run / "results" / "table.md").write_text("| model |")
    events = Events(tmp_path)
    events.add_results()
    events.close()
    found = read_events(shown / "refiners" / "dae_y" / "step_size=1")
    points = [(event.step, value.simple_value) for event, value in found]
    assert points == [(0, pytest.approx(0.1)), (1, pytest.approx(0.4)), (2, 0.5)]
    values = {value.tag: value for _, value in read_events(shown / "results")}
    assert (values["figure3"].image.height, values["figure3"].image.width) == (3, 5)
    assert values["table/text_summary"].tensor.string_val == [b"| model |"]


def test_a_folder_that_is_no_workdir(tmp_path):
    command = [sys.executable, "-m", "launch.tensorboard", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "is no workdir" in done.stderr
