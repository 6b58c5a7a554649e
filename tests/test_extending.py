"""The code of docs/extending.md, put where it says, goes through an experiment."""

import importlib
import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest

import iterinf
from iterinf.experiment.modes import run

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = dict(re.findall(r"```python\n# (.*?)\n(.*?)```", PAGE.read_text(), re.S))


@pytest.fixture
def modules(monkeypatch):
    """The files of the page by path, their lines added to the dictionaries."""
    found = {}
    for path, code in BLOCKS.items():
        path, _, registry = path.partition(", in ")
        if not registry:
            name = path.removesuffix(".py").replace("/", ".")
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)  # flax looks there
            exec(compile(code, path, "exec"), module.__dict__)
            found[path] = module
            continue
        package = importlib.import_module(
            path.removesuffix("/__init__.py").replace("/", ".")
        )
        defined = {k: v for m in found.values() for k, v in vars(m).items()}
        for name, value in eval(f"{{{code}}}", defined).items():
            monkeypatch.setitem(getattr(package, registry), name, value)
    return found


def test_the_page_adds_one_of_each():
    paths = [path.partition(", in ")[0] for path in BLOCKS]
    assert paths == [
        "iterinf/refiners/median_filter.py",
        "iterinf/refiners/__init__.py",
        "iterinf/segmenters/two_layers.py",
        "iterinf/segmenters/__init__.py",
        "iterinf/data/shapes.py",
        "iterinf/data/__init__.py",
        "configs/shapes.py",
    ]


def test_its_config_runs(modules, tmp_path):
    config = modules["configs/shapes.py"].get_config()
    run(config, tmp_path, "run", "")
    table = json.loads((tmp_path / "results" / "table.json").read_text())
    plain, filtered = table["rows"]
    assert plain["model"] == "two layers"
    assert filtered["model"] == "two layers + median filter"
    assert filtered["gain"] > 3  # noise goes, shapes stay
    image = np.zeros((48, 48, 3), np.uint8)
    assert iterinf.load(tmp_path).predict(image).labels.shape == (48, 48)
