"""Rows and their order, what is said of the controls, the images shown."""

import numpy as np
import pytest

from iterinf.data import create_dataset
from iterinf.evaluation.measures import MEASURES
from iterinf.evaluation.tally import pack, unpack
from iterinf.ops.metrics import compute_mean_iou
from iterinf.report import results
from iterinf.report.results import (
    RefinerResult,
    Report,
    choose_images,
    describe_differences,
    list_differences,
    make_rows,
    write_results,
)
from iterinf.report.rows import make_row
from iterinf.report.trajectories import ImageResult, pack_maps
from tests.tallies import make_tally

NUM_CLASSES = 11
KEYS = ("initial", "refined", "one_reconstruction", "damped_step")
BLOCKS = (0, 0, 1, 2, 2)


def make_confusions(rng, num_images):
    """Confusion matrices of models that saw the same images: 40 pixels a class."""
    chances = rng.dirichlet(np.ones(NUM_CLASSES), size=(num_images, NUM_CLASSES))
    return rng.multinomial(40, chances)


def make_result(name, *, end_to_end=False, damped=0.4, curve=None, **counts):
    """What the stages have left of a refiner: confusions by row."""
    arrays = {}
    if curve is not None:
        arrays = {"mean_iou": curve} | {f"curve/{key}": curve for key in MEASURES}
    for key, confusions in counts.items():
        arrays |= pack(key, make_tally(confusions))
    return RefinerResult(
        name=name,
        title=f"FCN8 + {name}",
        step_size=0.1,
        step_sizes=(0.1, 1.0),
        num_iterations=7,
        parameters={},
        damped_step_size=damped,
        end_to_end=end_to_end,
        is_control=False,
        curve={},
        test=arrays,
    )


def compare(plain, refiners):
    """The differences of the refiners to the segmenter and their controls."""
    rows = make_rows("FCN8", plain, refiners, range(5), 20)
    return list_differences(rows, refiners, range(5), 20)


def describe(plain, refiners):
    """The sentences about the refiners."""
    return describe_differences(compare(plain, refiners))


@pytest.fixture
def plain(rng):
    """Counts of the segmenter over five images."""
    return make_confusions(rng, 5)


@pytest.fixture
def refiners(tmp_path, rng, plain):
    """Two refiners of that segmenter."""
    return [
        make_result(
            name,
            **{key: make_confusions(rng, 5) for key in KEYS} | {"initial": plain},
            curve=np.array([0.2, 0.3]),
        )
        for name in ("B", "A")
    ]


def test_rows_are_the_plain_network_then_controls_and_result_in_order(refiners, plain):
    rows = make_rows("FCN8", make_tally(plain), refiners, BLOCKS, 20)
    found = [(row.model, row.step_size, row.num_iterations) for row in rows]
    assert found == [
        ("FCN8", None, 0),
        ("FCN8 + B, one reconstruction", 1.0, 1),
        ("FCN8 + B, one damped step", 0.4, 1),
        ("FCN8 + B", 0.1, 7),
        ("FCN8 + A, one reconstruction", 1.0, 1),
        ("FCN8 + A, one damped step", 0.4, 1),
        ("FCN8 + A", 0.1, 7),
    ]
    assert (rows[0].gain, rows[0].gain_low, rows[0].gain_high) == (0, 0, 0)


def test_a_segmenter_trained_with_the_refiner_has_a_row(tmp_path, rng, plain):
    """Its gain is over the segmenter alone, like that of all rows."""
    counts = {key: make_confusions(rng, 5) for key in KEYS}
    refiner = make_result("C", end_to_end=True, **counts)
    rows = make_rows("FCN8", make_tally(plain), [refiner], BLOCKS, 20)
    assert [row.model for row in rows] == [
        "FCN8",
        "FCN8 + C, its own segmenter",
        "FCN8 + C, one reconstruction",
        "FCN8 + C, one damped step",
        "FCN8 + C",
    ]
    assert (rows[1].step_size, rows[1].num_iterations) == (None, 0)
    own, mean_iou = counts["initial"].sum(axis=0), rows[0].mean_iou
    gain = 100 * compute_mean_iou(own) - mean_iou
    np.testing.assert_allclose(rows[1].gain, gain)


def test_a_refiner_without_controls_has_one_row_and_one_verdict(tmp_path, rng):
    plain = np.array([[[36, 4], [4, 36]]] * 5)
    change = np.array([[1, -1], [0, 0]])
    for gained, verdict in ((2, "improves on"), (-2, "is worse than")):
        refined = plain + gained * change
        refiner = make_result("CRF", damped=None, refined=refined)
        rows = make_rows("FCN8", make_tally(plain), [refiner], range(5), 20)
        assert [row.model for row in rows] == ["FCN8", "FCN8 + CRF"]
        (sentence,) = describe(make_tally(plain), [refiner])
        assert sentence.startswith(f"FCN8 + CRF {verdict} the segmenter alone: ")


def test_a_refiner_is_compared_with_the_one_that_it_follows(tmp_path):
    plain = np.array([[[36, 4], [4, 36]]] * 5)
    change = np.array([[1, -1], [0, 0]])
    first, second = (
        make_result(name, damped=None, refined=plain + gained * change)
        for name, gained in (("DAE", 3), ("both", 2))
    )
    refiners = [second._replace(follows=first.title), first]
    differences = compare(make_tally(plain), refiners)
    assert [(d.model, d.over) for d in differences] == [
        ("FCN8 + both", "the segmenter alone"),
        ("FCN8 + both", "FCN8 + DAE"),
        ("FCN8 + DAE", "the segmenter alone"),
    ]
    gain, loss, other = (d.intervals["mean IoU"].gain for d in differences)
    assert gain > 0 > loss
    assert gain - other == pytest.approx(loss)
    sentences = describe_differences(differences)
    assert sentences[0].startswith("FCN8 + both improves on the segmenter alone: ")
    assert sentences[1].startswith(f"FCN8 + both over FCN8 + DAE: mean IoU {loss:+.2f}")
    assert sentences[2].startswith("FCN8 + DAE improves on the segmenter alone: ")


def test_rows_hold_the_counts_of_their_own(refiners, plain):
    rows = make_rows("FCN8", make_tally(plain), refiners, BLOCKS, 20)
    keys = ("initial", "one_reconstruction", "damped_step", "refined")
    for row, key in zip([rows[0], *rows[4:]], keys, strict=True):
        assert row == make_row(
            row.model,
            unpack(refiners[1].test, key),
            make_tally(plain),
            BLOCKS,
            step_size=row.step_size,
            num_iterations=row.num_iterations,
            is_control=key in ("one_reconstruction", "damped_step"),
            num_resamples=20,
        )


@pytest.mark.parametrize(
    ("full", "damped", "verdict"),
    [(4, 3, "beats"), (4, 0, "does not clearly"), (-2, 4, "does not clearly")],
)
def test_iterating_is_compared_to_both_controls(tmp_path, full, damped, verdict):
    """Each image: so many pixels of 80 are right in the result but not there."""
    refined = np.array([[[36, 4], [4, 36]]] * 5)
    change = np.array([[1, -1], [0, 0]])
    refiner = make_result(
        "A",
        refined=refined,
        one_reconstruction=refined - full * change,
        damped_step=refined - damped * change,
    )
    plain = refined - 5 * change
    sentences = describe(make_tally(plain), [refiner])
    sentence, *others = sentences
    assert sentence.startswith(f"FCN8 + A {verdict}")
    assert len(others) == 2
    for other in others:
        assert "NLL 0.00 [0.00, 0.00]" in other
    for lost in (full, damped):
        iou = [(36 - lost) / 44, 36 / (44 + lost)]
        gain = 100 * (36 / 44 - np.mean(iou))  # the same in every resample
        text = f"{gain:+.2f}" if lost else "0.00"
        assert f"{text} [{text}, {text}] points of mean IoU over one " in sentence


def test_standing_still_beats_no_control(tmp_path):
    refined = np.array([[[36, 4], [4, 36]]] * 5)
    worse = refined - np.array([[9, -9], [0, 0]])
    refiner = make_result(
        "A",
        refined=refined,
        one_reconstruction=worse,
        damped_step=worse,
    )
    (sentence,) = describe(make_tally(refined), [refiner])
    assert "does not clearly" in sentence
    assert "the segmenter alone: 0.00 [0.00, 0.00]" in sentence


@pytest.mark.parametrize(
    ("gains", "count", "expected"),
    [
        ((3, -2, 0, 9, 1), 3, [3, 4, 1]),  # most, median, least
        ((3, -2, 0, 9, 1), 5, [3, 0, 4, 2, 1]),
        ((3, -2, 0, 9, 1), 0, []),
        ((0, 5), 3, [1, 0]),
        ((4,), 3, [0]),
        ((1, 1, 1), 3, [0, 1, 2]),
    ],
)
def test_images_go_from_the_best_to_the_worst(tmp_path, gains, count, expected):
    initial = np.array([[[20, 20], [20, 20]]] * len(gains))
    change = np.array([[[1, -1], [0, 0]]])
    refined = initial + np.array(gains).reshape(-1, 1, 1) * change
    refiner = make_result("A", refined=refined)
    assert choose_images(initial, refiner, count) == expected


def test_figures_draw_what_was_counted(tmp_path, refiners, plain, monkeypatch):
    drawn = []
    monkeypatch.setattr(results, "save_figure", lambda _, path: drawn.append(path.name))
    painted = []
    monkeypatch.setattr(
        results, "plot_segmentations", lambda *args: painted.append(args)
    )
    curves = []
    monkeypatch.setattr(
        results,
        "plot_iterations",
        lambda *args, **options: curves.append((args, options)),
    )
    crf = make_result("CRF", damped=None, initial=plain, curve=np.array([0.2, 0.4]))
    once = make_result("once", damped=None, initial=plain, curve=np.array([0.2]))
    after = make_result("after", damped=None, initial=plain, curve=np.array([0.2, 0.4]))
    refiners = [crf, once, after._replace(follows="FCN8 + A"), *refiners]
    curve = {
        "mean_iou": np.array([[0.5, 0.6], [0.7, 0.4]]),
        "initial_mean_iou": np.array(0.3),
        "step_sizes": np.array([0.1, 1.0]),
    }
    refiners = [refiner._replace(curve=curve) for refiner in refiners]
    dataset = create_dataset("streets", height=32, width=48, num_test=5)
    rows = [make_row("FCN8", make_tally(plain), make_tally(plain), BLOCKS)]
    maps = np.arange(8, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(48, 2)
    images = []
    for index in (3, 0):
        segmented = dataset.test[index].label
        packed = [pack_maps(maps, segmented), pack_maps(maps[::-1], segmented)]
        refined = dict.fromkeys(("CRF", "once", "after", "B", "A"), packed)
        images.append(ImageResult(dataset.test[index], segmented, refined))
    write_results(Report(dataset, rows, refiners, [], [], {}, {}, images, []), tmp_path)
    figures = [f"figure4_{name}.png" for name in ("CRF", "after", "B", "A")]
    assert drawn == [*figures, "figure3.png"]  # one iteration is no curve
    ((images, labels, predictions, *_),) = painted
    batch = dataset.test.stack([3, 0])
    np.testing.assert_array_equal(images, batch.image)
    np.testing.assert_array_equal(labels, batch.label)
    assert list(predictions) == ["FCN8", "FCN8 + CRF", "FCN8 + A"]
    np.testing.assert_array_equal(predictions["FCN8"], batch.label)
    np.testing.assert_array_equal(predictions["FCN8 + A"], maps[[7, 7]])
    assert [options["start"] for _, options in curves] == [
        "segmenter alone",
        "FCN8 + A",
        "segmenter alone",
        "segmenter alone",
    ]
    ((validation, test), *choice), options = curves[2]
    expected = [[0.3, 0.5, 0.6], [0.3, 0.7, 0.4]]
    np.testing.assert_array_equal(validation["mean_iou"], expected)
    assert choice == [(0.1, 1.0), 0.1, 7]
    expected = [rows[0].mean_iou / 100, 0.2, 0.3]
    np.testing.assert_allclose(test["mean_iou"], expected)
    assert options["title"] == "FCN8 + B"
    ((title, other),) = options["others"].items()
    assert title == "FCN8 + CRF"
    np.testing.assert_allclose(other[0], [0.3, 0.5, 0.6])
    np.testing.assert_allclose(other[1], [rows[0].mean_iou / 100, 0.2, 0.4])
    assert curves[0][1]["others"] == {}


def test_a_control_without_y_is_marked_and_compared_with(tmp_path):
    refined = np.array([[[36, 4], [4, 36]]] * 5)
    change = np.array([[1, -1], [0, 0]])
    counts = {key: refined for key in KEYS}
    control = make_result("B", damped=None, refined=refined - 3 * change)
    refiners = [control._replace(is_control=True), make_result("A", **counts)]
    plain = make_tally(refined - 5 * change)
    rows = make_rows("FCN8", plain, refiners, range(5), 20)
    marked = [row.model for row in rows if row.is_control]
    assert marked[0] == "FCN8 + B"
    assert "FCN8 + A" not in marked
    differences = compare(plain, refiners)
    found = {(d.model, d.over): d.intervals["mean IoU"] for d in differences}
    expected = 100 * (36 / 44 - np.mean([33 / 44, 36 / 47]))
    np.testing.assert_allclose(found["FCN8 + A", "FCN8 + B"], [expected] * 3)
    assert ("FCN8 + B", "FCN8 + B") not in found
    last = describe_differences(differences)[-1]
    assert last.startswith(f"FCN8 + A over FCN8 + B: mean IoU {expected:+.2f} [")
