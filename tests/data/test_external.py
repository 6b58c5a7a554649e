"""Outputs of a network that ran elsewhere: what is read, and what is refused."""

import re

import numpy as np
import pytest

from iterinf.data import create_dataset
from iterinf.data.external import add_outputs, find_stride
from iterinf.errors import UserError

SPLITS = ("train", "validation", "test")


def open_streets():
    """Street scenes of 34x50, 11 classes."""
    return create_dataset(
        "streets",
        seed=0,
        height=34,
        width=50,
        num_train=3,
        num_validation=2,
        num_test=2,
    )


def make_arrays(rng, **changes):
    """Probabilities and a feature map for such a scene."""
    arrays = {
        "probabilities": rng.dirichlet(np.ones(11), (34, 50)).astype(np.float32),
        "pool2": rng.normal(size=(8, 12, 5)).astype(np.float16),
    }
    return arrays | changes


@pytest.fixture
def folder(tmp_path, rng):
    """Outputs of all scenes."""
    dataset = open_streets()
    for name in SPLITS:
        (tmp_path / name).mkdir()
        for stem in getattr(dataset, name).names:
            np.savez(tmp_path / name / f"{stem}.npz", **make_arrays(rng))
    return tmp_path


def first_file(folder):
    """That of the first training scene."""
    return folder / "train" / f"{open_streets().train.names[0]}.npz"


@pytest.mark.parametrize("name", SPLITS)
def test_every_record_gets_its_own(folder, name):
    plain = getattr(open_streets(), name)
    split = getattr(add_outputs(open_streets(), folder), name)
    assert (split.names, split.blocks) == (plain.names, plain.blocks)
    for record, other in zip(split, plain, strict=True):
        np.testing.assert_array_equal(record.image, other.image)
        with np.load(folder / name / f"{record.name}.npz") as file:
            assert record.outputs.keys() == set(file) == {"probabilities", "pool2"}
            for key, array in record.outputs.items():
                np.testing.assert_array_equal(array, file[key])
                assert array.dtype == file[key].dtype
    batch = split.stack([1, 0])
    np.testing.assert_array_equal(batch.outputs["pool2"][1], split[0].outputs["pool2"])


def test_probabilities_alone_may_come_as_npy(folder, rng):
    arrays = {}
    for path in list((folder / "train").iterdir()):
        path.unlink()
        arrays[path.stem] = make_arrays(rng)["probabilities"]
        np.save(path.with_suffix(".npy"), arrays[path.stem])
    record = add_outputs(open_streets(), folder).train[2]
    assert record.outputs.keys() == {"probabilities"}
    found = record.outputs["probabilities"]
    np.testing.assert_array_equal(found, arrays[record.name])


def test_the_coarsest_stride():
    assert find_stride([]) == find_stride(["probabilities"]) == 1
    assert find_stride(["probabilities", "pool4", "pool2"]) == 16


def test_a_missing_file_is_named(folder):
    first_file(folder).unlink()
    with pytest.raises(UserError, match=re.escape(f"{first_file(folder)} (or .npy)")):
        add_outputs(open_streets(), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": np.ones((34, 49, 11), "f")}, r"expected \(34, 50, 11\)"),
        ({"probabilities": np.ones((34, 50, 12), "f")}, r"expected \(34, 50, 11\)"),
        ({"probabilities": np.ones((34, 50, 11), "f")}, "sum to 1"),
        (
            {"probabilities": np.full((34, 50, 11), np.nan, "f")},
            "probabilities of .* non-finite",
        ),
        ({"pool2": np.full((8, 12, 5), np.inf, "f")}, "pool2 .* non-finite"),
        ({"probabilities": np.ones((34, 50, 11))}, "float64, expected float16"),
        ({"pool2": np.ones((9, 12, 5), "f")}, r"pool2 .* expected \(8, 12, 5\)"),
        ({"pool2": np.ones((), "f")}, r"pool2 .* expected \(8, 12\)"),
        ({"pool6": np.ones((1, 1, 1), "f")}, "arrays .*pool6"),
        ({"pool2": np.array([{}])}, "cannot read .*"),
    ],
)
def test_a_wrong_array_is_named(folder, rng, changes, message):
    arrays = make_arrays(rng, **changes)
    np.savez(first_file(folder), **arrays)
    with pytest.raises(UserError, match=message) as error:
        _ = add_outputs(open_streets(), folder).train[0]
    assert str(first_file(folder)) in str(error.value)


def test_negative_probabilities_are_refused(folder, rng):
    y = make_arrays(rng)["probabilities"]
    y[0, 0, :2] = (-0.5, 1.5 - y[0, 0, 2:].sum())
    np.savez(first_file(folder), probabilities=y)
    with pytest.raises(UserError, match="negative"):
        _ = add_outputs(open_streets(), folder).train[0]


def test_a_broken_file_is_named(folder):
    first_file(folder).write_bytes(first_file(folder).read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read .*"):
        _ = add_outputs(open_streets(), folder).train[0]


@pytest.mark.slow
@pytest.mark.parametrize("save", [np.savez_compressed, np.savez])
def test_a_damaged_file_is_read_or_named(folder, rng, save):
    """One flipped byte a time, all over the file: no other error gets out."""
    save(first_file(folder), **make_arrays(rng))
    whole = first_file(folder).read_bytes()
    messages = []
    for place in np.linspace(0, len(whole) - 1, 150).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        first_file(folder).write_bytes(bytes(damaged))
        try:
            _ = add_outputs(open_streets(), folder).train[0]
        except UserError as error:
            messages.append(str(error))
    assert all(str(first_file(folder)) in message for message in messages)
    assert len(messages) > 100  # by the zip's checksums


def test_all_files_hold_the_same_arrays(folder, rng):
    np.savez(first_file(folder), probabilities=make_arrays(rng)["probabilities"])
    train = add_outputs(open_streets(), folder).train
    _ = train[1]
    with pytest.raises(UserError, match="'pool2': 5"):
        _ = train[0]
