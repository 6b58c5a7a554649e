"""The compiled sweep against plain loops, and the choice made from it."""

import operator
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterinf
from iterinf.errors import UserError
from iterinf.evaluation import sweep as selection
from iterinf.evaluation.selection import Curves, Selection, select
from iterinf.evaluation.sweep import count_refinements
from iterinf.evaluation.tally import Spec, prepare_truth, tally_image
from iterinf.training.objectives import propose, to_unit_range
from tests.fixtures.linear import (
    NUM_CLASSES,
    TRACES,
    Refiner,
    Segmenter,
    count_image,
    make_problem,
    softmax,
)

STEP_SIZES = (0.1, 0.5, 1.0)
NUM_ITERATIONS = 4
SPEC = Spec(NUM_CLASSES, 0.2)


def count(networks, split, step_sizes=STEP_SIZES, **options):
    """The sweep with the constants above."""
    return count_refinements(
        Segmenter(),
        Refiner(),
        networks,
        split,
        step_sizes=step_sizes,
        num_iterations=NUM_ITERATIONS,
        **{"batch_size": 2, "spec": SPEC} | options,
    )


def count_by_loop(networks, split, stop=0.0, count_stopped=True):
    """The same in plain NumPy: images, step sizes, iterations."""
    segmenter, refiner = (networks[n]["params"] for n in ("segmenter", "refiner"))
    initial, refined = [], []
    for image, label in zip(split.image, split.label, strict=True):
        x = image / 255.0
        start = softmax(4 * x @ segmenter["Dense_0"]["kernel"])
        initial.append(count_image(label, start))
        refined.append([])
        for step_size in STEP_SIZES:
            y = start
            refined[-1].append([])
            moving = True
            for _ in range(NUM_ITERATIONS):
                mixed = (np.roll(y, 1, axis=1) + y) @ refiner["own"]["kernel"]
                r = softmax(4 * mixed + 3 * x @ refiner["other"]["kernel"])
                near = np.linalg.norm(y - r, axis=-1).mean() < stop
                y = y + step_size * (r - y) if moving else y
                moving = moving and not near
                counts = count_image(label, y)
                refined[-1][-1].append(counts * (moving or count_stopped))
    return np.array(initial), np.array(refined)


@pytest.mark.parametrize(("num_images", "batch_size"), [(5, 2), (4, 2), (3, 5)])
def test_counts_equal_a_plain_loop(num_images, batch_size):
    networks, split = make_problem(num_images)
    found = count(networks, split, batch_size=batch_size)
    initial, refined = count_by_loop(networks, split)
    np.testing.assert_array_equal(found.initial.confusion, initial)
    np.testing.assert_array_equal(found.refined.confusion, refined)
    assert refined.shape == (num_images, 3, 4, 3, 3)
    assert len(np.unique(refined.reshape(num_images, -1, 9), axis=1)[0]) > 4


@pytest.mark.parametrize("details", [False, True])
def test_what_is_counted_is_that_of_each_y(details):
    """Boundaries and details of a sweep are those of the same y refined by itself."""
    networks, split = make_problem(3)
    spec = SPEC._replace(details=details)
    found = count(networks, split, spec=spec)
    batch = jax.tree.map(jnp.asarray, to_unit_range(split))
    candidate = propose(Segmenter(), networks["segmenter"], batch)
    apply = partial(Refiner().apply, networks["refiner"])
    condition = apply(candidate, method="condition")
    truth = jax.vmap(partial(prepare_truth, spec=spec))(jnp.asarray(split.label))
    for s, step_size in enumerate(STEP_SIZES):
        for t in range(NUM_ITERATIONS):
            y = iterinf.refine(
                lambda y: apply(y, condition, method="reconstruct"),
                candidate.y,
                step_size=step_size,
                num_iterations=t + 1,
            ).y
            expected = jax.vmap(partial(tally_image, spec=spec))(truth, y)
            one = jax.tree.map(operator.itemgetter(np.s_[:, s, t]), found.refined)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), one, expected)
    assert (found.refined.details is None) != details


def test_a_split_that_does_not_fit_comes_in_chunks(monkeypatch, capsys):
    networks, split = make_problem(5)
    whole = count(networks, split)
    num_bytes = split.image.nbytes + split.label.nbytes
    monkeypatch.setattr(selection, "read_memory", lambda: 4 * num_bytes // 2 + 4)
    chunks = count(networks, split, title="sweep of a test")
    assert "4/4" in capsys.readouterr().err  # 3 batches, by two
    np.testing.assert_array_equal(chunks.initial.confusion, whole.initial.confusion)
    np.testing.assert_array_equal(chunks.refined.confusion, whole.refined.confusion)


@pytest.mark.parametrize("options", [{}, {"stop": 0.45, "count_stopped": False}])
@pytest.mark.parametrize("name", ["segmenter", "refiner"])
def test_probabilities_that_are_not_finite_are_no_labelling(name, options):
    networks, split = make_problem()
    params = networks[name]["params"]
    networks[name] = {"params": jax.tree.map(lambda x: x * np.nan, params)}
    with pytest.raises(
        UserError, match=f"the {name} gives probabilities .* not finite"
    ):
        count(networks, split, **options)


@pytest.mark.parametrize("count_stopped", [True, False])
def test_each_image_stops_by_itself(count_stopped):
    networks, split = make_problem()
    options = {"stop": 0.45, "count_stopped": count_stopped}
    found = count(networks, split, **options)
    _, refined = count_by_loop(networks, split, **options)
    np.testing.assert_array_equal(found.refined.confusion, refined)
    _, without = count_by_loop(networks, split)
    stopped = (refined != without).any(axis=(1, 3, 4))  # image, iteration
    assert len(set(stopped.sum(axis=1))) > 1  # some earlier than others


def test_every_labelled_pixel_is_counted_once():
    networks, split = make_problem()
    found = count(networks, split)
    total = (split.label < NUM_CLASSES).sum(axis=(1, 2))
    np.testing.assert_array_equal(found.initial.confusion.sum(axis=(1, 2)), total)
    expected = np.broadcast_to(total[:, None, None], (5, 3, 4))
    np.testing.assert_array_equal(found.refined.confusion.sum(axis=(3, 4)), expected)


@pytest.mark.parametrize(
    ("memory", "num_images", "expected"),
    [
        (1000, 99, 8),  # 100 + 30 * 13 < 500 < 100 + 30 * 14
        (1160, 99, 16),  # 100 + 30 * 16 = 580
        (1158, 99, 8),
        (200, 99, 1),  # too little for one: let the device say so
        (1e9, 99, 32),
        (1e9, 5, 4),
        (None, 99, 4),
    ],
)
def test_images_at_a_time_are_as_many_as_half_of_the_memory_holds(
    monkeypatch, memory, num_images, expected
):
    """A program that needs 100 bytes and 30 for every image."""

    def lower(batches):
        analysis = SimpleNamespace(temp_size_in_bytes=100 + 30 * batches.label.shape[1])
        compiled = SimpleNamespace(memory_analysis=lambda: analysis)
        return SimpleNamespace(compile=lambda: compiled)

    monkeypatch.setattr(selection, "read_memory", lambda: memory)
    _, split = make_problem(num_images)
    assert selection.choose_batch_size(lower, split) == expected


def test_images_at_a_time_that_memory_chose_change_nothing(monkeypatch):
    problem = make_problem()
    expected = count(*problem)
    monkeypatch.setattr(selection, "read_memory", lambda: 10**6)
    found = count(*problem, batch_size=None)
    np.testing.assert_array_equal(found.refined.confusion, expected.refined.confusion)


def test_the_sweep_compiles_once():
    jax.clear_caches()
    TRACES.clear()
    count(*make_problem(6, seed=1))
    assert selection._count_batches._cache_size() == 1
    traces = len(TRACES)
    count(*make_problem(6, seed=2), step_sizes=(0.2, 0.3, 0.4))
    count(*make_problem(5, seed=3))  # filled up to as many batches
    assert selection._count_batches._cache_size() == 1
    assert len(TRACES) == traces


def test_the_progress_bar_counts_batches_and_changes_nothing(capsys):
    problem = make_problem()
    shown = count(*problem, title="sweep of a test")
    hidden = count(*problem)
    np.testing.assert_array_equal(shown.refined.confusion, hidden.refined.confusion)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "sweep of a test: 100%" in last
    assert "3/3" in last


def make_curves(mean_iou):
    """With boundary F1 that is highest where mean IoU is lowest."""
    return Curves(np.array(mean_iou), 1 - np.array(mean_iou))


def test_select_takes_the_highest():
    curves = make_curves([[0.1, 0.2, 0.3], [0.2, 0.5, 0.4]])
    choice = select(curves, (0.1, 0.5))
    assert choice == Selection(0.5, 2, 0.5, {}, 0.5)
    choice = select(curves, (0.1, 0.5), "boundary_f1")
    assert choice == Selection(0.1, 1, 0.1, {}, 0.9)


def test_select_takes_fewer_iterations_at_ties():
    curve = [[0.1, 0.2, 0.5], [0.2, 0.5, 0.5], [0.5, 0.1, 0.1]]
    choice = select(make_curves(curve), (0.1, 0.5, 1.0))
    assert choice[:3] == (1.0, 1, 0.5)
    assert select(make_curves(curve[:2]), (0.1, 0.5))[:3] == (0.5, 2, 0.5)


def test_select_passes_over_iterations_that_count_nothing():
    curves = make_curves([[0.1, 0.2, np.nan], [0.1, np.nan, np.nan]])
    assert select(curves, (0.1, 0.5))[:3] == (0.1, 2, 0.2)


def test_select_says_when_no_iteration_counts_anything():
    with pytest.raises(UserError, match="image stops .*selection.stop"):
        select(make_curves(np.full((2, 3), np.nan)), (0.1, 0.5))


def test_select_never_takes_iteration_zero():
    assert select(make_curves(np.zeros((2, 3))), (0.1, 0.5)).num_iterations == 1
