"""Defaults are shared by all calls: none can be changed by one of them."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import iterinf
from iterinf.data.dataset import Record

MODULES = [
    module.name
    for module in pkgutil.walk_packages(iterinf.__path__, "iterinf.")
    if module.name != "iterinf.main"  # defines flags, which other scripts do too
]


def list_defaults(module):
    """Defaults of the functions, methods and records that a module defines."""
    for name, value in vars(module).items():
        owners = [value]
        if inspect.isclass(value):
            owners = [f for _, f in inspect.getmembers(value, inspect.isfunction)]
            for field, default in getattr(value, "_field_defaults", {}).items():
                yield f"{name}.{field}", default
        for owner in filter(inspect.isfunction, owners):
            for parameter in inspect.signature(owner).parameters.values():
                yield f"{owner.__qualname__}({parameter.name})", parameter.default


@pytest.mark.parametrize("module", MODULES)
def test_none_is_mutable(module):
    defaults = dict(list_defaults(importlib.import_module(module)))
    mutable = {
        name: default
        for name, default in defaults.items()
        if isinstance(default, list | dict | set | bytearray | np.ndarray)
    }
    assert mutable == {}


def test_outputs_of_one_record_are_not_those_of_another():
    image, label = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
    for record in (iterinf.Batch(image[None], label[None]), Record(image, label, "")):
        with pytest.raises((TypeError, ValueError)):
            record.outputs["probabilities"] = np.ones((2, 2, 1), np.float32)
    assert dict(iterinf.Batch(image[None], label[None]).outputs) == {}
