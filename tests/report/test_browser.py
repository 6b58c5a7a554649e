"""The page in a real browser: what it paints, by mouse and keys, at any width."""

import numpy as np
import pytest

from tests.browser import open_page
from tests.fixtures.pages import (
    HEIGHT,
    NASTY,
    NUM_ITERATIONS,
    WIDTH,
    make_page,
    read_document,
    read_photo,
)

CORRECTED, DEGRADED = (90, 230, 120), (210, 30, 40)


def read_pixels(seen):
    """What the canvas shows, RGB [h, w, 3]."""
    return np.array(seen["pixels"], np.uint8).reshape(HEIGHT, WIDTH, 4)[..., :3]


def test_paints_what_it_holds_and_follows_slider_keys_and_lists(tmp_path):
    dataset, report, maps = make_page(tmp_path)
    records = [image.record for image in report.page_images]
    page = tmp_path / "report.html"
    steps = {
        "slider": {"set": ["#iteration", "3"]},
        "step": {"set": ["#step-size", "0"]},
        "refiner": {"set": ["#refiner", "0"]},
        "canvas": {"focus": "#canvas"},
        "left": {"press": "ArrowLeft"},
        "right": {"press": "ArrowRight"},
        "down": {"press": "ArrowDown"},
        "truth": {"press": "2"},
        "network": {"press": "3"},
        "changes": {"press": "5"},
        "image": {"press": "1"},
        "first": {"click": "#list button:first-child"},
        "refined": {"click": '#views button[data-view="refined"]'},
        "photo": {"set": ["#photo", "100"]},
        "hover": {"hover": "#canvas"},
    }
    found = open_page(page, list(steps.values()))
    assert found["problems"] == []
    assert all(url.startswith(("file:", "data:")) for url in found["requests"])
    seen = dict(zip(["start", *steps], found["seen"], strict=True))
    expected = {
        "start": maps[0]["dae"][1, 2],
        "slider": maps[0]["dae"][1, 3],
        "step": maps[0]["dae"][0, 3],
        "refiner": maps[0]["crf"][1, 2],
        "left": maps[0]["crf"][1, 1],
        "right": maps[0]["crf"][1, 2],
        "down": maps[1]["crf"][1, 2],
        "truth": records[1].label,
        "network": maps[1]["crf"][0, 0],
        "refined": maps[0]["crf"][1, 2],
    }
    for name, labels in expected.items():
        np.testing.assert_array_equal(
            read_pixels(seen[name]), dataset.colors[labels], name
        )
    after, before = expected["down"], expected["network"]
    changes, label = read_pixels(seen["changes"]), records[1].label
    corrected = (after == label) & (before != label)
    degraded = (after != label) & (before == label) & (label < 3)
    np.testing.assert_array_equal((changes == CORRECTED).all(axis=-1), corrected)
    np.testing.assert_array_equal((changes == DEGRADED).all(axis=-1), degraded)
    images = map(read_photo, read_document(page.read_text())["images"])
    for name, image in zip(("first", "image"), images, strict=True):
        difference = read_pixels(seen[name]).astype(int) - image
        assert np.abs(difference).max() <= 4  # decoders round otherwise
    photo = read_pixels(seen["photo"])
    np.testing.assert_array_equal(photo, read_pixels(seen["first"]))
    right = 100 * (expected["start"] == records[0].label)[records[0].label < 3].mean()
    assert f"{right:.1f}% of pixels correct after 2" in seen["start"]["status"]
    assert seen["slider"]["iteration"] == f"3 of {NUM_ITERATIONS}"
    assert seen["hover"]["pixel"].startswith(
        f"pixel {WIDTH // 2}, {HEIGHT // 2}: truth"
    )
    for text in (dataset.name, dataset.classes[0], f"A note. {NASTY}"):
        assert text in seen["start"]["text"]


def test_keys_move_the_page_outside_the_viewer(tmp_path):
    make_page(tmp_path)
    steps = [{"press": "ArrowDown"}, {"press": "ArrowLeft"}, {"press": "3"}]
    start, down, left, network = open_page(tmp_path / "report.html", steps)["seen"]
    assert down["pixels"] == start["pixels"]
    assert left["pixels"] != start["pixels"]
    assert network["pixels"] != left["pixels"]


@pytest.mark.parametrize("num_classes", [2, 150])
def test_fits_a_phone_with_any_number_of_classes(tmp_path, num_classes):
    make_page(tmp_path, num_classes)
    found = open_page(tmp_path / "report.html", [{"size": [375, 800]}])
    assert found["problems"] == []
    assert [seen["overflow"] for seen in found["seen"]] == [0, 0]


def test_without_images_there_is_no_viewer(tmp_path):
    make_page(tmp_path, num_images=0)
    found = open_page(tmp_path / "report.html", [])
    assert found["problems"] == []
    text = found["seen"][0]["text"]
    assert "Test table" in text
    assert "iteration by iteration" not in text
