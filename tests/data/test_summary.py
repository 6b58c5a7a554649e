"""What check_data counts, by hand, and what it says and draws."""

from collections import Counter

import numpy as np
import pytest

from iterinf.data.dataset import Dataset, Record, Split
from iterinf.data.summary import check_dataset, count_records, list_warnings
from iterinf.report.contact_sheet import plot_contact_sheet
from iterinf.report.summary import format_summaries

CLASSES = ("ground", "sky")
COLORS = np.array([(10, 20, 30), (0, 0, 250), (1, 1, 1)], np.uint8)


def make_split(*labels):
    """Black images with these labels; 2 is void."""
    labels = [np.array(label, np.uint8) for label in labels]
    images = [np.zeros((*label.shape, 3), np.uint8) for label in labels]
    names = [f"image {i}" for i in range(len(labels))]
    return Split(
        lambda i: Record(images[i], labels[i], names[i]), names, range(len(labels))
    )


@pytest.fixture
def dataset():
    """Two sizes to train on; sky is absent from validation, and rare in test."""
    rare = np.zeros((50, 50))
    rare[7, 7] = 1
    return Dataset(
        "meadow",
        CLASSES,
        COLORS,
        make_split([[0, 1], [1, 2]], [[0, 0, 0], [2, 2, 0]], [[1, 1], [1, 1]]),
        make_split([[0, 0]], [[2, 2]]),
        make_split(rare),
    )


def test_counts_by_hand(dataset):
    counted = check_dataset(dataset)["train"]
    assert counted.sizes == Counter({(2, 2): 2, (2, 3): 1})
    np.testing.assert_array_equal(counted.pixels, [[1, 2, 1], [4, 0, 2], [0, 4, 0]])
    np.testing.assert_allclose(counted.shares, [5 / 11, 6 / 11])
    assert counted.void_share == 3 / 14
    assert counted.num_images_with.tolist() == [2, 2, 2]


def test_labels_above_void_are_void():
    counted = count_records(make_split([[0, 2, 3, 255]]), 2)
    assert counted.pixels.tolist() == [[1, 0, 3]]


def test_an_image_without_labels_has_no_shares():
    counted = count_records(make_split([[2, 2]]), 2)
    assert counted.shares.tolist() == [0, 0]
    assert counted.void_share == 1


def test_warnings_say_what_is_odd(dataset):
    sizes, absent, void, rare = list_warnings(check_dataset(dataset), CLASSES)
    assert "train" in sizes
    assert "2 different sizes" in sizes
    assert "validation" in absent
    assert "sky" in absent
    assert "validation" in void
    assert "void: 1" in void
    assert rare.startswith("sky: less than 0.1%")
    assert "test" in rare


def test_long_lists_are_cut():
    names = [f"class {i}" for i in range(150)]
    summaries = {"test": count_records(make_split([[0, 150]]), 150)}
    (warning,) = list_warnings(summaries, names)
    assert warning.endswith("class 11, class 12 and 137 others.")


def test_the_table_has_a_line_a_class(dataset):
    lines = format_summaries(check_dataset(dataset), CLASSES).splitlines()
    assert lines[1].split() == ["train", "3", "2x2", "(2),", "2x3", "(1)"]
    assert lines[3].split() == ["test", "1", "50x50"]
    # Of the images that show it ground has 5 of 7 labelled pixels, sky 6 of 7.
    assert lines[6].split() == "ground 45.45 100.00 99.96 2 1 1 1.10".split()
    assert lines[7].split() == "sky 54.55 - 0.04 2 0 1 0.92".split()
    assert lines[8].split() == "void 21.43 50.00 - 2 1 0 -".split()
    assert any(line.startswith("- validation") and "sky" in line for line in lines)


def list_names(figure):
    """The titles of the images."""
    return [axes.get_title(loc="left") for axes in figure.axes if axes.images]


def test_the_contact_sheet_shows_images_beside_labels_in_class_colors(dataset):
    figure = plot_contact_sheet(dataset)
    train, validation, _ = figure.subfigs
    assert train.get_suptitle() == "train: 3 of 3 images"
    assert list_names(validation) == ["image 0", "image 1"]
    pair = np.asarray(train.axes[0].images[0].get_array())
    assert not pair[:, :2].any()
    np.testing.assert_array_equal(pair[:, -2:], COLORS[[[0, 1], [1, 2]]])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*CLASSES, "void"]


def test_many_images_are_shown_from_first_to_last(dataset):
    split = make_split(*[[[0, 1]]] * 40)
    figure = plot_contact_sheet(dataset._replace(train=split))
    names = list_names(figure.subfigs[0])
    assert (len(names), names[0], names[-1]) == (12, "image 0", "image 39")
