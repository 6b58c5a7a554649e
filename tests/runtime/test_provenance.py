"""Where numbers come from: every run of a workdir, and its commit."""

import json
import subprocess

from iterinf.runtime import provenance
from iterinf.runtime.provenance import describe_runs, log_run, read_commit


def test_runs_are_logged_and_described(tmp_path, monkeypatch):
    runs = (("a1", "first"), ("b2", "second"), ("a1", "main --mode=sweep --seed=1"))
    for commit, command in runs:
        monkeypatch.setattr(provenance, "read_commit", lambda _, commit=commit: commit)
        log_run(tmp_path, command)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["command"] for line in lines] == [run[1] for run in runs]
    described = describe_runs(tmp_path)
    assert list(described) == ["command", "commit", "hardware", "versions"]
    assert described["command"] == "main --seed=1"
    assert described["commit"] == "a1; b2"
    assert "cpu" in described["hardware"]
    assert ";" not in described["hardware"]


def test_the_commit_is_that_of_the_folder_that_holds_the_package(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(provenance, "read_commit", lambda f: asked.append(f) or "a1")
    log_run(tmp_path, "main")
    (checkout,) = asked
    assert (checkout / "iterinf" / "__init__.py").is_file()


def make_checkout(folder):
    """A repository of one commit."""
    folder.mkdir()
    (folder / "file").write_text("one")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=0"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    head = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(head, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_checkout(tmp_path):
    head = make_checkout(tmp_path / "repository")
    assert read_commit(tmp_path / "repository") == head[:12]
    (tmp_path / "repository" / "new").write_text("one")
    assert read_commit(tmp_path / "repository") == head[:12] + "+"
    (tmp_path / "repository" / "new").unlink()
    assert read_commit(tmp_path / "repository") == head[:12]
    (tmp_path / "repository" / "file").write_text("two")
    assert read_commit(tmp_path / "repository") == head[:12] + "+"


def test_no_commit_where_there_is_no_checkout(tmp_path, monkeypatch):
    make_checkout(tmp_path / "repository")
    inside = tmp_path / "repository" / "site-packages"
    inside.mkdir()
    assert read_commit(inside) == "unknown"

    def fail(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert read_commit(tmp_path / "repository") == "unknown"
