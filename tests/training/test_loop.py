"""Training: one step in closed form, stopping, and resumption bit for bit."""

import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import iterinf
from iterinf.errors import UserError
from iterinf.runtime.bars import StepBar
from iterinf.runtime.files import append_line
from iterinf.training import loop as training
from iterinf.training.checkpoints import Checkpoints
from iterinf.training.loop import (
    Schedule,
    create_train_state,
    drop_epochs,
    fit,
    make_train_step,
)
from iterinf.training.losses import LossSum, compute_cross_entropy
from iterinf.training.optimizer import create_optimizer

STEPS_PER_EPOCH = 3
NUM_EPOCHS = 4
LAST = STEPS_PER_EPOCH * NUM_EPOCHS


def create_params():
    """Of a linear layer, 3 channels to 2 classes."""
    kernel = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    return {"layer": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(2)}}


def compute_loss(params, frozen, batch, key):
    """Cross-entropy at noisy images, so that the random key matters."""
    noise = 0.5 * jax.random.normal(key, batch.image.shape)
    logits = (batch.image + noise) @ params["layer"]["kernel"]
    logits += params["layer"]["bias"].reshape(1, 1, 1, 2)
    return compute_cross_entropy(logits, batch.label)


def make_batch(index):
    """The batch at a position."""
    rng = np.random.default_rng(index)
    image = rng.uniform(size=(2, 2, 2, 3)).astype(np.float32)
    label = (image[..., 0] > image[..., 1]).astype(np.int32)
    return iterinf.Batch(jnp.asarray(image), jnp.asarray(label))


def make_batches(first):
    """Endless, from a position on."""
    while True:
        yield make_batch(first)
        first += 1


def evaluate(params):
    """A number that falls as the layer learns."""
    return {"validation/loss": float(jnp.exp(-params["layer"]["kernel"][0, 1]))}


def create_state(optimizer, params=None, averaged=False):
    """The state before the first step."""
    key = jax.random.key(7)
    return create_train_state(
        params or create_params(), optimizer, key, averaged=averaged
    )


def create_rmsprop():
    """The optimizer of `run_fit`."""
    return create_optimizer(
        "rmsprop",
        learning_rate=0.05,
        decay_per_epoch=0.9,
        steps_per_epoch=STEPS_PER_EPOCH,
        weight_decay=1e-4,
    )


def run_fit(
    folder,
    *,
    batches=make_batches,
    loss=compute_loss,
    evaluate=evaluate,
    ema_decay=0.0,
    checkpoint_seconds=0.0,
    **options,
):
    """Trains the layer with RMSprop."""
    optimizer = create_rmsprop()
    schedule = {
        "num_epochs": NUM_EPOCHS,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "patience": 100,
        "monitor": "validation/loss",
        "maximize": False,
    }
    return fit(
        create_state(optimizer, averaged=ema_decay > 0),
        make_train_step(loss, optimizer, ema_decay=ema_decay),
        evaluate,
        batches,
        folder,
        Schedule(**schedule | options),
        title="test",
        checkpoint_seconds=checkpoint_seconds,
    )


def read_log(folder):
    """metrics.jsonl without the seconds, which no two runs share."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        waited, seconds = record.pop("seconds_waiting_for_data"), record.pop("seconds")
        assert 0 <= waited <= seconds + 0.01  # which are rounded
    return records


def assert_equal(actual, expected):
    """Two trees are equal to the bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Parameters and log of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run_fit(folder), read_log(folder)


# One step.


def test_weight_decay_comes_before_rmsprop_and_spares_biases():
    """Kernels and scales: g = gradient + 2e-4 w; w - rate g / sqrt(.1 g^2 + eps)."""
    weights = {"kernel": 3.0, "bias": 3.0, "scale": -2.0}
    params = {"layer": {name: jnp.asarray(w) for name, w in weights.items()}}
    slope = 1e-4

    def compute_loss(params, frozen, batch, key):
        total = slope * sum(params["layer"].values())
        return LossSum(total, jnp.ones(()))

    optimizer = create_optimizer(
        "rmsprop",
        learning_rate=1e-3,
        decay_per_epoch=0.99,
        steps_per_epoch=10,
        weight_decay=1e-4,
        options={"decay": 0.9, "eps": 1e-6},
    )
    step = jax.jit(make_train_step(compute_loss, optimizer))
    state = step(create_state(optimizer, params), None, make_batch(0))
    for name, w in weights.items():
        g = slope + (0 if name == "bias" else 2e-4 * w)
        expected = w - 1e-3 * g / np.sqrt(0.1 * g**2 + 1e-6)
        moved = float(state.params["layer"][name]) - w
        np.testing.assert_allclose(moved, expected - w, rtol=2e-3)
    assert state.step == 1


def test_the_rate_falls_once_an_epoch():
    """With SGD and a slope of one, every step is the rate itself."""

    def compute_loss(params, frozen, batch, key):
        return LossSum(params["w"], jnp.ones(()))

    optimizer = create_optimizer(
        "sgd", learning_rate=0.5, decay_per_epoch=0.8, steps_per_epoch=3
    )
    step = jax.jit(make_train_step(compute_loss, optimizer))
    state = create_state(optimizer, {"w": jnp.zeros(())})
    moves = []
    for _ in range(7):
        before = state.params["w"]
        state = step(state, None, make_batch(0))
        moves.append(float(before - state.params["w"]))
    np.testing.assert_allclose(moves, 3 * [0.5] + 3 * [0.4] + [0.32], rtol=1e-5)


def test_a_step_descends_the_mean_and_sums_the_loss():
    optimizer = optax.sgd(0.1)
    state, batch = create_state(optimizer), make_batch(0)
    step = jax.jit(make_train_step(compute_loss, optimizer))
    stepped = step(state, None, batch)
    key = jax.random.fold_in(state.key, 0)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda params: compute_loss(params, None, batch, key).mean)
    )(state.params)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        stepped.params,
        expected,
    )
    np.testing.assert_allclose(stepped.sums.mean, loss, rtol=1e-6)
    assert stepped.sums.num_pixels == 8
    twice = step(stepped, None, batch)
    assert twice.sums.num_pixels == 16


def test_frozen_variables_reach_the_loss():
    def compute_loss(params, frozen, batch, key):
        return LossSum(params["w"] * frozen, jnp.ones(()))

    optimizer = optax.sgd(1.0)
    state = create_state(optimizer, {"w": jnp.zeros(())})
    stepped = make_train_step(compute_loss, optimizer)(state, 3.0, make_batch(0))
    assert stepped.params["w"] == -3


@pytest.mark.parametrize(
    ("name", "options"), [("rmspropp", {}), ("rmsprop", {"epsilon": 1e-6})]
)
def test_an_unknown_optimizer_or_option_is_named(name, options):
    with pytest.raises(UserError, match=f"'{name}'.*({name}|epsilon)"):
        create_optimizer(
            name,
            learning_rate=1e-3,
            decay_per_epoch=0.99,
            steps_per_epoch=10,
            options=options,
        )


# The loop.


def test_the_loop_is_a_plain_loop_over_steps(uninterrupted):
    optimizer = create_rmsprop()
    step = jax.jit(make_train_step(compute_loss, optimizer))
    state, candidates, losses = create_state(optimizer), [], []
    for epoch in range(NUM_EPOCHS):
        state = state._replace(sums=LossSum(jnp.zeros(()), jnp.zeros(())))
        for i in range(STEPS_PER_EPOCH):
            state = step(state, None, make_batch(epoch * STEPS_PER_EPOCH + i))
        losses.append(float(state.sums.mean))
        value = evaluate(state.params)["validation/loss"]
        candidates.append((value, epoch, state.params))
    params, log = uninterrupted
    assert_equal(params, min(candidates)[2])
    assert [record["epoch"] for record in log] == [1, 2, 3, 4]
    np.testing.assert_allclose([r["train/loss"] for r in log], losses, rtol=1e-6)
    found = [record["validation/loss"] for record in log]
    assert found == [value for value, _, _ in candidates]


def test_the_average_of_the_parameters_is_validated_kept_and_resumed(tmp_path):
    step = jax.jit(make_train_step(compute_loss, create_rmsprop()))
    state = create_state(create_rmsprop())
    debiased = optax.ema(0.9, debias=True)
    ema_state = debiased.init(state.params)
    expected = []
    for index in range(LAST):
        state = step(state, None, make_batch(index))
        average, ema_state = debiased.update(state.params, ema_state)
        if (index + 1) % STEPS_PER_EPOCH == 0:
            expected.append(average)
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        return {"validation/loss": -float(len(seen))}

    batches = make_failing_batches(LAST - 2, terminate)
    with pytest.raises(SystemExit):
        run_fit(tmp_path, batches=batches, evaluate=evaluate, ema_decay=0.9)
    params = run_fit(tmp_path, evaluate=evaluate, ema_decay=0.9)
    for found, wanted in zip([*seen, params], [*expected, average], strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted
        )


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_initial_parameters_have_no_part_in_the_average(decay):
    """After t steps it is (1 - d) / (1 - d^t) * sum_i d^(t - i) p_i, p_0 left out."""
    step = jax.jit(make_train_step(compute_loss, create_rmsprop(), ema_decay=decay))
    state = create_state(create_rmsprop(), averaged=True)
    history = []
    for index in range(5):
        state = step(state, None, make_batch(index))
        history.append(np.float64(state.params["layer"]["kernel"]))
        weights = np.float64(decay) ** np.arange(len(history))[::-1]
        expected = np.average(history, axis=0, weights=weights)
        np.testing.assert_allclose(
            state.model["layer"]["kernel"], expected, rtol=1e-4, atol=1e-6
        )


def test_few_steps_are_handed_out_ahead_of_the_device(tmp_path, monkeypatch):
    """However slow a step is; the bar counts those that are done."""

    def compute_slowly(params, frozen, batch, key):
        loss = compute_loss(params, frozen, batch, key)
        zero = jnp.zeros((900, 900)) * loss.total
        return loss._replace(total=loss.total + jnp.linalg.matrix_power(zero, 9).sum())

    handed_out = []

    class Bar(StepBar):
        def add(self, done):
            handed_out.append(done)
            super().add(done)
            assert sum(not step.is_ready() for step in handed_out) <= 3
            assert self._bar.n <= sum(step.is_ready() for step in handed_out)

    monkeypatch.setattr(training, "StepBar", Bar)
    run_fit(tmp_path, loss=compute_slowly, steps_per_epoch=10, num_epochs=2)
    assert len(handed_out) == 20


@pytest.mark.parametrize("last", [None, 9, 11])
def test_between_checkpoints_the_best_and_the_last_epoch_wait(tmp_path, last):
    values = iter([5.0, 3.0, 1.0, 4.0, 2.0])  # of epochs that end at steps 3, 6, ...
    seen, saved = [], []

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        return {"validation/loss": next(values)}

    class Writes(Checkpoints):
        def write(self):
            saved.extend(epoch.step for epoch in self._waiting)
            super().write()

    options = {"evaluate": evaluate, "num_epochs": 5, "checkpoint_seconds": 1e9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterinf.training.loop, "Checkpoints", Writes)
        if last:
            batches = make_failing_batches(last, terminate)
            with pytest.raises(SystemExit):
                run_fit(tmp_path, batches=batches, **options)
        params = run_fit(tmp_path, **options)
    assert saved == {None: [3, 9, 15], 9: [3, 9, 10, 12, 15], 11: [3, 9, 12, 15]}[last]
    assert_equal(params, seen[2])
    assert len(read_log(tmp_path)) == 5


@pytest.mark.parametrize("maximize", [False, True])
def test_patience_ends_it_and_the_best_parameters_come_back(tmp_path, maximize):
    values = iter([5.0, 3.0, 4.0, 3.0, 9.0])
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        value = next(values)
        return {"score": -value if maximize else value}

    params = run_fit(
        tmp_path,
        evaluate=evaluate,
        monitor="score",
        maximize=maximize,
        num_epochs=9,
        patience=2,
    )
    assert len(seen) == 4  # best after the second, none better in two more
    assert_equal(params, seen[1])
    assert len(read_log(tmp_path)) == 4


def test_a_finished_run_returns_the_same_without_a_step(tmp_path, uninterrupted):
    run_fit(tmp_path)

    opened = []

    def refuse(first):
        opened.append(first)
        raise AssertionError("batches were opened")

    assert_equal(run_fit(tmp_path, batches=refuse), uninterrupted[0])
    assert not opened
    assert read_log(tmp_path) == uninterrupted[1]


# Interruption.


class PowerCutError(Exception):
    """Ends a run in the middle."""


def make_failing_batches(last, act):
    """Batches that call `act` before the one at `last`."""

    def make(first):
        for index, batch in enumerate(make_batches(first), start=first):
            if index == last:
                act()
            yield batch

    return make


def cut_power():
    """Ends the run at once."""
    raise PowerCutError


def terminate():
    """Sends SIGTERM to this process, which the loop listens for."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("moment", [0, 4, 6, 11])
def test_cut_off_and_started_again_it_ends_bit_for_bit(tmp_path, uninterrupted, moment):
    with pytest.raises(PowerCutError):
        run_fit(tmp_path, batches=make_failing_batches(moment, cut_power))
    starts = []

    def make(first):
        starts.append(first)
        return make_batches(first)

    assert_equal(run_fit(tmp_path, batches=make), uninterrupted[0])
    assert starts == [moment // STEPS_PER_EPOCH * STEPS_PER_EPOCH]
    assert read_log(tmp_path) == uninterrupted[1]


def fail_on_device():
    """Ends the run as XLA does where memory is out."""
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


@pytest.mark.parametrize("act", [cut_power, fail_on_device])
def test_an_error_loses_no_epoch_that_waits(tmp_path, uninterrupted, act):
    with pytest.raises((PowerCutError, jax.errors.JaxRuntimeError)):
        run_fit(tmp_path, batches=make_failing_batches(11, act), checkpoint_seconds=1e9)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "9" in kept  # the end of the third epoch
    assert_equal(run_fit(tmp_path), uninterrupted[0])
    assert read_log(tmp_path) == uninterrupted[1]


def test_a_kill_loses_the_epochs_that_wait_and_nothing_else(
    tmp_path, uninterrupted, monkeypatch
):
    batches = make_failing_batches(11, cut_power)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "__exit__", lambda self, *_: self.wait())
        with pytest.raises(PowerCutError):
            run_fit(tmp_path, batches=batches, checkpoint_seconds=1e9)
    starts = []

    def make(first):
        starts.append(first)
        return make_batches(first)

    params = run_fit(tmp_path, batches=make, checkpoint_seconds=1e9)
    assert starts == [STEPS_PER_EPOCH]  # the first epoch is written at once
    assert_equal(params, uninterrupted[0])
    assert read_log(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("moments", [[0], [4], [5], [2, 7, 11]])
def test_sigterm_saves_exits_with_zero_and_goes_on(
    tmp_path, uninterrupted, moments, capsys
):
    previous = signal.getsignal(signal.SIGTERM)
    for moment in moments:
        with pytest.raises(SystemExit) as caught:
            run_fit(tmp_path, batches=make_failing_batches(moment, terminate))
        assert caught.value.code == 0
        assert f"saved at step {moment + 1}" in capsys.readouterr().out
        assert signal.getsignal(signal.SIGTERM) is previous
    starts = []

    def make(first):
        starts.append(first)
        return make_batches(first)

    assert_equal(run_fit(tmp_path, batches=make), uninterrupted[0])
    assert starts == [moments[-1] + 1] * (moments[-1] + 1 < LAST)
    assert read_log(tmp_path) == uninterrupted[1]


def test_sigterm_in_the_evaluation_keeps_the_epoch(tmp_path, uninterrupted, capsys):
    def terminate_once(params):
        terminate()
        return evaluate(params)

    with pytest.raises(SystemExit) as caught:
        run_fit(tmp_path, evaluate=terminate_once)
    assert caught.value.code == 0
    assert "saved at step 3" in capsys.readouterr().out
    assert_equal(run_fit(tmp_path), uninterrupted[0])
    assert read_log(tmp_path) == uninterrupted[1]


def test_sigterm_where_nothing_is_left_to_save_is_handed_on(tmp_path, monkeypatch):
    run_fit(tmp_path)
    restore_best, heard = Checkpoints.restore_best, []

    def terminate_and_restore(self, model):
        terminate()
        return restore_best(self, model)

    monkeypatch.setattr(Checkpoints, "restore_best", terminate_and_restore)
    previous = signal.signal(signal.SIGTERM, lambda *_: heard.append("here"))
    try:
        run_fit(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard == ["here"]


@pytest.mark.parametrize("bad_step", [0, 7])
def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path, bad_step):
    def spoil(first):
        for index, batch in enumerate(make_batches(first), start=first):
            scale = jnp.nan if index == bad_step else 1.0
            yield batch._replace(image=scale * batch.image)

    with pytest.raises(UserError, match=rf"not finite at step {bad_step};"):
        run_fit(tmp_path, batches=spoil)
    epochs = bad_step // STEPS_PER_EPOCH
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert ("6" in kept) == (epochs == 2)
    assert "9" not in kept


def test_after_a_loss_that_is_not_finite_the_good_epochs_are_kept(
    tmp_path, uninterrupted
):
    def spoil(first):
        for index, batch in enumerate(make_batches(first), start=first):
            yield batch._replace(image=batch.image * (jnp.inf if index == 7 else 1.0))

    with pytest.raises(UserError, match="not finite at step 7;"):
        run_fit(tmp_path, batches=spoil)
    assert_equal(run_fit(tmp_path), uninterrupted[0])
    assert read_log(tmp_path) == uninterrupted[1]


def test_sigterm_after_a_loss_that_is_not_finite_saves_nothing(tmp_path):
    def spoil(first):
        for index, batch in enumerate(make_batches(first), start=first):
            if index == 4:
                terminate()
            yield batch._replace(image=batch.image * (jnp.nan if index == 4 else 1.0))

    with pytest.raises(UserError, match="not finite at step 4;"):
        run_fit(tmp_path, batches=spoil)
    assert (tmp_path / "checkpoints" / "3").exists()
    assert not (tmp_path / "checkpoints" / "5").exists()


def test_a_metric_that_is_not_finite_leaves_the_epoch_before_it(tmp_path):
    values = iter([1.0, 0.5, float("nan")])
    with pytest.raises(UserError, match="validation/loss is nan after epoch 3;"):
        run_fit(tmp_path, evaluate=lambda _: {"validation/loss": next(values)})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["6"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run_fit(tmp_path, num_epochs=1)
    optimizer = optax.sgd(0.1)
    params = {"layer": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(2)}}
    with pytest.raises(UserError, match="another model: params/layer/kernel"):
        fit(
            create_state(optimizer, params),
            make_train_step(compute_loss, optimizer),
            evaluate,
            make_batches,
            tmp_path,
            Schedule(1, STEPS_PER_EPOCH, 1, "validation/loss", False),
            title="test",
        )


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    run_fit(tmp_path, num_epochs=1)
    optimizer = optax.sgd(0.1)
    with pytest.raises(UserError, match="of another optimizer: rest/opt_state"):
        fit(
            create_state(optimizer),
            make_train_step(compute_loss, optimizer),
            evaluate,
            make_batches,
            tmp_path,
            Schedule(1, STEPS_PER_EPOCH, 1, "validation/loss", False),
            title="test",
        )


# metrics.jsonl.


def write_log(path: pathlib.Path, torn: str = "") -> None:
    """Three epochs, and what a kill left of a fourth."""
    lines = [json.dumps({"epoch": epoch, "x": 0.5}) + "\n" for epoch in (1, 2, 3)]
    path.write_text("".join(lines) + torn)


@pytest.mark.parametrize("torn", ["", '{"epo', '{"epoch": 3, "x": 0.5}'])
def test_a_log_goes_on_after_a_torn_last_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_log(path, torn)
    drop_epochs(path, after=3)
    append_line(path, '{"epoch": 4, "x": 1.0}')
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]


def test_a_log_drops_what_will_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path)
    drop_epochs(path, after=1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"epoch": 1, "x": 0.5}
    ]
