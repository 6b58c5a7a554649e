"""The page holds what it is given, whatever is in it, and asks nothing of a network."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from iterinf.data.dataset import Dataset, Record
from iterinf.evaluation.tally import pack
from iterinf.report.html import write_page
from iterinf.report.results import RefinerResult
from iterinf.report.rows import make_row
from iterinf.report.trajectories import ImageResult, pack_maps, unpack_maps
from iterinf.runtime.files import write_arrays
from tests.tallies import make_tally

HEIGHT, WIDTH = 7, 9  # odd: the middle lies inside a pixel
STEP_SIZES = (0.1, 1.0)
NUM_ITERATIONS = 3
NASTY = "</script><b>&\"'$title<!--"


def make_maps(rng, num_classes):
    """Random label maps [s, p, h, w] that go on from one map."""
    shape = (len(STEP_SIZES), NUM_ITERATIONS + 1, HEIGHT, WIDTH)
    maps = rng.integers(0, num_classes, shape).astype(np.uint8)
    maps[:, 0] = maps[0, 0]
    return maps


def make_refiner(folder, rng, name, counts):
    """What the stages would have left of a refiner."""
    curve = rng.random((len(STEP_SIZES), NUM_ITERATIONS))
    curve[0, 1] = np.nan
    write_arrays(
        folder / "curve.npz",
        mean_iou=curve,
        boundary_f1=curve / 2,
        initial_mean_iou=np.array(0.5),
        initial_boundary_f1=np.array(0.25),
        step_sizes=np.asarray(STEP_SIZES),
    )
    mean_iou = rng.random(NUM_ITERATIONS)
    arrays = pack("initial", make_tally(counts)) | pack("refined", make_tally(counts))
    arrays |= {"mean_iou": mean_iou, "curve/boundary_f1": mean_iou / 2}
    write_arrays(folder / "test.npz", **arrays)
    title = f"net + {name}"
    damped = None if name == "crf" else 0.5
    return RefinerResult(
        name, title, 1.0, STEP_SIZES, 2, {}, damped, False, False, folder
    )


def make_page(folder, num_classes=3, num_pictures=2):
    """Writes a page of random numbers; also returns records and maps by refiner."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, (num_pictures or 1, num_classes, num_classes))
    refiners = [make_refiner(folder / n, rng, n, counts) for n in ("crf", "dae")]
    pictures, maps = [], []
    for index in range(num_pictures):
        record = Record(
            rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8),
            rng.integers(0, num_classes + 1, (HEIGHT, WIDTH)).astype(np.uint8),
            f"{index} {NASTY}",
        )
        maps.append({refiner.name: make_maps(rng, num_classes) for refiner in refiners})
        segmented = maps[-1]["crf"][0, 0]
        refined = {
            name: [pack_maps(part, segmented) for part in parts]
            for name, parts in maps[-1].items()
        }
        pictures.append(ImageResult(record, segmented, refined))
    plain = make_tally(counts)
    rows = [make_row("net", plain, plain, range(len(counts)), num_resamples=9)]
    rows += [rows[0]._replace(model=r.title, num_iterations=2) for r in refiners]
    rows[1] = rows[1]._replace(is_control=True, class_iou=(np.nan,) * num_classes)
    classes = tuple(f"class {k} {NASTY}" for k in range(num_classes))
    colors = rng.integers(0, 256, (num_classes + 1, 3)).astype(np.uint8)
    dataset = Dataset(f"data {NASTY}", classes, colors, [], [], [None] * 7)
    write_page(
        folder / "report.html",
        dataset,
        rows,
        refiners,
        pictures,
        [f"A note. {NASTY}"],
        {"command": f"python {NASTY}", "seed": 0},
        {"key": (0.1, NASTY)},
    )
    return dataset, [picture.record for picture in pictures], maps


def read_document(page):
    """The JSON inside a page."""
    pattern = r'<script type="application/json" id="document">(.*?)</script>'
    return json.loads(re.search(pattern, page, re.DOTALL)[1])


def read_image(picture):
    """The image of a picture of the page, RGB."""
    jpeg = picture["image"].removeprefix("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))))


@pytest.mark.parametrize("num_classes", [2, 150, 255])
def test_packed_maps_come_back(rng, num_classes):
    maps = make_maps(rng, num_classes)[0]
    start = rng.integers(0, num_classes, (HEIGHT, WIDTH)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_maps(pack_maps(maps, start), start), maps)
    still = np.repeat(start[None], 21, axis=0)
    assert len(pack_maps(still, start)) < 40


def test_holds_images_and_maps(tmp_path):
    dataset, records, maps = make_page(tmp_path)
    document = read_document((tmp_path / "report.html").read_text())
    assert document["classes"] == list(dataset.classes)
    assert document["colors"] == dataset.colors.tolist()
    nothing = np.zeros((HEIGHT, WIDTH), np.uint8)
    for found, record, expected in zip(
        document["pictures"], records, maps, strict=True
    ):
        assert found["name"] == record.name
        assert read_image(found).shape == record.image.shape

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
    make_page(tmp_path)
    document = read_document((tmp_path / "report.html").read_text())
    crf, dae = document["curves"]
    assert (crf["chosen"], crf["num_iterations"], crf["has_controls"]) == (1, 2, False)
    assert dae["has_controls"]
    with np.load(tmp_path / "dae" / "curve.npz") as curve:
        mean_iou = curve["mean_iou"]
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
