"""The page holds what it is given, whatever is in it, and asks nothing of a network."""

import base64
import re

import numpy as np
import pytest

from iterinf.report.trajectories import pack_maps, unpack_maps
from tests.fixtures.pages import (
    HEIGHT,
    NASTY,
    NUM_ITERATIONS,
    WIDTH,
    make_maps,
    make_page,
    read_document,
    read_photo,
)


@pytest.mark.parametrize("num_classes", [2, 150, 255])
def test_packed_maps_come_back(rng, num_classes):
    maps = make_maps(rng, num_classes)[0]
    start = rng.integers(0, num_classes, (HEIGHT, WIDTH)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_maps(pack_maps(maps, start), start), maps)
    still = np.repeat(start[None], 21, axis=0)
    assert len(pack_maps(still, start)) < 40


def test_holds_images_and_maps(tmp_path):
    dataset, report, maps = make_page(tmp_path)
    records = [image.record for image in report.page_images]
    document = read_document((tmp_path / "report.html").read_text())
    assert document["classes"] == list(dataset.classes)
    assert document["colors"] == dataset.colors.tolist()
    nothing = np.zeros((HEIGHT, WIDTH), np.uint8)
    for found, record, expected in zip(document["images"], records, maps, strict=True):
        assert found["name"] == record.name
        assert read_photo(found).shape == record.image.shape

        def unpack(text, start=nothing):
            return unpack_maps(base64.b64decode(text), start)

        np.testing.assert_array_equal(unpack(found["label"])[0], record.label)
        segmented = unpack(found["segmented"])[0]
        np.testing.assert_array_equal(segmented, expected["crf"][0, 0])
        for name, parts in expected.items():
            for text, part in zip(found["refined"][name], parts, strict=True):
                np.testing.assert_array_equal(unpack(text, segmented), part)
            right = (parts[1, 2] == record.label).sum()
            right -= (segmented == record.label).sum()
            assert found["gained"][name] == right


def test_holds_curves_and_rows(tmp_path):
    _, report, _ = make_page(tmp_path)
    document = read_document((tmp_path / "report.html").read_text())
    crf, dae = document["curves"]
    assert (crf["chosen"], crf["num_iterations"], crf["has_controls"]) == (1, 2, False)
    assert dae["has_controls"]
    mean_iou = report.refiners[1].curve["mean_iou"]
    assert [line[0] for line in dae["validation"]] == [50, 50]
    assert dae["validation"][0][2] is None  # not a number
    np.testing.assert_allclose(dae["validation"][1][1:], 100 * mean_iou[1], atol=1e-3)
    assert len(dae["test"]) == NUM_ITERATIONS + 1
    assert document["rows"][1]["class_iou"] == [None] * 3
    assert document["config"] == {"key": [0.1, NASTY]}


def test_nothing_in_it_is_markup_or_comes_from_elsewhere(tmp_path):
    make_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("</script>") == 2  # its own
    assert "<b>" not in page
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"https?://[^\"' ]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, never loaded
