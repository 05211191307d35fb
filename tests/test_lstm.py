"""The LSTM forecaster: contract of the serving step, training, compression."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.compress import distil, load_quantised, prune, quantise
from detectors.lstm import LstmModel, LstmOptions, LstmSequence, weight_shapes
from detectors.lstm_train import train_lstm

C, K, E = 6, 2, 3
SMALL = LstmOptions(hidden=16, epochs=12, chunk=16, chunks_per_segment=2)


def series(seed: int, n: int = 600, missing: float = 0.1) -> LstmSequence:
    """A daily wave, a shared slow factor and noise; some values missing."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    wave = np.sin(2 * np.pi * t / 96)
    factor = np.zeros(n)
    for i in range(1, n):
        factor[i] = 0.9 * factor[i - 1] + 0.3 * rng.normal()
    gains = np.linspace(0.5, 1.5, C)
    z = wave[:, None] * gains + factor[:, None] * gains[::-1] + 0.2 * rng.normal(size=(n, C))
    mask = rng.random((n, C)) >= missing
    time = np.stack([wave, np.cos(2 * np.pi * t / 96)], axis=1)
    return LstmSequence(np.where(mask, z, np.nan).astype(np.float32), mask, time.astype(np.float32))


def labelled(seed: int, n: int = 600) -> LstmSequence:
    """The same with a hint that flickers during faults of 30 windows, and the faults as labels."""
    rng = np.random.default_rng([seed, 1])
    label = (np.arange(n) // 30 % 4 == 2).astype(np.int8)
    hint = rng.normal(size=(n, E)) + 3.0 * (label * (rng.random(n) < 0.4))[:, None]
    return dataclasses.replace(series(seed, n), extra=hint.astype(np.float32), label=label)


def untrained(options: LstmOptions, seed: int = 0) -> LstmModel:
    rng = np.random.default_rng(seed)
    shapes = weight_shapes(options, C, K, E if options.alarm_weight else 0)
    return LstmModel(options, {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()})


@pytest.fixture(scope="module")
def trained() -> LstmModel:
    return train_lstm([series(i) for i in range(3)], SMALL)[0]


VARIANTS = [
    LstmOptions(hidden=16),
    LstmOptions(hidden=16, layers=2, attention=4),
    LstmOptions(hidden=7, layer_norm=False, residual=False, dof=float("inf")),
    LstmOptions(hidden=16, alarm_weight=1.0),
]


def extra_of(options: LstmOptions, data: LstmSequence) -> np.ndarray | None:
    return labelled(9, len(data.z)).extra if options.alarm_weight else None


@pytest.mark.parametrize("options", VARIANTS)
def test_a_rows_answer_does_not_depend_on_its_batch(options: LstmOptions) -> None:
    model, rng = untrained(options), np.random.default_rng(1)
    z = rng.normal(size=(37, C)).astype(np.float32)
    mask, time = rng.random((37, C)) > 0.2, rng.normal(size=(37, K)).astype(np.float32)
    state = model.new_state(37)
    extra = rng.normal(size=(37, model.extra_count)).astype(np.float32)
    for _ in range(6):
        state = model.step(z, mask, time, state, extra).state
    whole = model.step(z, mask, time, state, extra)
    chosen = rng.permutation(37)[:5]
    part = model.step(z[chosen], mask[chosen], time[chosen], state[chosen], extra[chosen])
    for name in ("nll", "residual", "mean", "scale", "state", "logit"):
        np.testing.assert_array_equal(getattr(whole, name)[chosen], getattr(part, name))


@pytest.mark.parametrize("options", VARIANTS)
def test_steps_equal_the_sequence_and_leave_their_input_alone(options: LstmOptions) -> None:
    model, data = untrained(options), series(4, 40)
    extra = extra_of(options, data)
    trace = model.sequence(data.z, data.mask, data.time, extra=extra)
    state = model.new_state(1)
    for i in range(40):
        before = state.copy()
        seen = None if extra is None else extra[i : i + 1]
        step = model.step(data.z[i : i + 1], data.mask[i : i + 1], data.time[i : i + 1], state, seen)
        np.testing.assert_array_equal(before, state)
        np.testing.assert_array_equal(step.logit, trace.logit[i : i + 1])
        np.testing.assert_array_equal(step.nll, trace.nll[i : i + 1])
        np.testing.assert_array_equal(step.residual, trace.residual[i : i + 1])
        state = step.state
    np.testing.assert_array_equal(state, trace.state)


@pytest.mark.parametrize("options", VARIANTS)
def test_serving_computes_what_training_did(options: LstmOptions) -> None:
    import torch

    from detectors.lstm_network import Network

    data, options = series(5, 60), dataclasses.replace(options, epochs=1, chunk=16)
    model, _ = train_lstm([labelled(1, 200) if options.alarm_weight else series(1, 200)], options)
    network = Network(options, C, K, model.extra_count)
    network.adopt(model)
    network.eval()
    extra = extra_of(options, data)
    given_extra = np.zeros((60, 0), np.float32) if extra is None else extra
    arrays = (np.nan_to_num(data.z, nan=0.0), data.mask.astype(np.float32), data.time, given_extra)
    given = [torch.from_numpy(array)[None] for array in arrays]
    with torch.no_grad():
        whole, log_scale, _, odds = network(*given, network.new_state(1))
        state, means = network.new_state(1), []
        for at in range(0, 60, 20):
            mean, _, state, _ = network(*(tensor[:, at : at + 20] for tensor in given), state)
            means.append(mean)
    trace = model.sequence(data.z, data.mask, data.time, extra=extra)
    np.testing.assert_allclose(whole[0].numpy(), trace.mean, atol=1e-4)
    np.testing.assert_allclose(torch.cat(means, dim=1)[0].numpy(), trace.mean, atol=1e-4)
    np.testing.assert_allclose(np.exp(log_scale[0].numpy()), trace.scale, rtol=1e-3)
    np.testing.assert_allclose(odds[0].numpy(), trace.logit, atol=1e-3)


def test_with_labels_it_learns_what_one_window_cannot_tell() -> None:
    options = LstmOptions(hidden=16, alarm_weight=3.0, epochs=12, held_out=0.0, early_stopping=0)
    model, _ = train_lstm([labelled(i) for i in range(6)], options)
    data = labelled(20)
    assert data.label is not None and data.extra is not None
    said = model.sequence(data.z, data.mask, data.time, extra=data.extra).logit
    quiet = data.extra.max(axis=1) < 1.5  # nothing to be seen in the window itself
    inside, outside = said[quiet & (data.label == 1)], said[quiet & (data.label == 0)]
    assert np.median(inside) > np.quantile(outside, 0.8)


def test_the_prediction_is_made_before_the_window_is_seen(trained: LstmModel) -> None:
    data = series(6, 30)
    changed = data.z.copy()
    changed[20] += 5
    a = trained.sequence(data.z, data.mask, data.time)
    b = trained.sequence(changed, data.mask, data.time)
    np.testing.assert_array_equal(a.mean[:21], b.mean[:21])
    assert not np.array_equal(a.mean[21], b.mean[21])
    assert b.nll[20] > a.nll[20] + 1


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), junk=st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 0.0]))
def test_what_is_missing_has_no_influence(trained: LstmModel, seed: int, junk: float) -> None:
    rng = np.random.default_rng(seed)
    data = series(seed, 5)
    mask = rng.random((5, C)) > 0.5
    other = np.where(mask, data.z, np.float32(junk)).astype(np.float32)
    a = trained.sequence(np.where(mask, data.z, np.nan), mask, data.time)
    b = trained.sequence(other, mask, data.time)
    np.testing.assert_array_equal(a.nll, b.nll)
    np.testing.assert_array_equal(a.state, b.state)
    assert (a.residual[~mask] == 0).all() and np.isfinite(a.nll).all()


def test_extreme_values_stay_finite_and_an_absent_window_costs_nothing(trained: LstmModel) -> None:
    z = np.array([[1e30] * C, [np.inf] * C, [-1e30] * C], np.float32)
    step = trained.step(z, np.ones((3, C), bool), np.zeros((3, K), np.float32), trained.new_state(3))
    assert np.isfinite(step.nll).all() and np.isfinite(step.state).all()
    assert step.nll[1] == 0 and (step.residual[1] == 0).all()  # infinite counts as missing
    empty = trained.sequence(z[:0], np.ones((0, C), bool), np.zeros((0, K), np.float32))
    assert empty.nll.shape == (0,) and empty.mean.shape == (0, C)


def test_wrong_shapes_are_refused(trained: LstmModel) -> None:
    z, mask = np.zeros((2, C), np.float32), np.ones((2, C), bool)
    time, state = np.zeros((2, K), np.float32), trained.new_state(2)
    for bad in (
        (z[:, 1:], mask[:, 1:], time, state),
        (z, mask, time[:1], state),
        (z, mask, time, state[:, 1:]),
        (z, mask[:1], time, state),
    ):
        with pytest.raises(ValueError, match=r"model|fit"):
            trained.step(*bad)


def test_saving_is_exact_and_foreign_bytes_are_refused(trained: LstmModel) -> None:
    blob = trained.to_bytes()
    again = LstmModel.from_bytes(blob)
    assert again.to_bytes() == blob and again.options == trained.options
    data = series(7, 30)
    np.testing.assert_array_equal(
        again.sequence(data.z, data.mask, data.time).nll, trained.sequence(data.z, data.mask, data.time).nll
    )
    for foreign in (b"", b"junk", blob[:100], quantise(trained), blob.replace(b"hidden", b"hiddem")):
        with pytest.raises(ValueError, match=r"."):
            LstmModel.from_bytes(foreign)
    with pytest.raises(ValueError, match="finite"):
        LstmModel(trained.options, {**trained.weights, "skip": np.full(C, np.nan, np.float32)})
    with pytest.raises(ValueError, match="shape"):
        LstmModel(trained.options, {**trained.weights, "head_b": np.zeros(3, np.float32)})


def test_the_same_seed_gives_the_same_model_and_leaves_torch_alone() -> None:
    import torch

    options = dataclasses.replace(SMALL, epochs=2)
    before = torch.get_rng_state(), torch.get_num_threads()
    first, second, third = (train_lstm([series(0, 300)], options, seed)[0].to_bytes() for seed in (1, 1, 2))
    assert first == second != third
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_num_threads()


def test_training_beats_naive_forecasts_on_series_it_never_saw(trained: LstmModel) -> None:
    def naive(data: LstmSequence, last: bool) -> float:
        """Gaussian with the scale of its own errors: the last value, or the mean."""
        z = np.where(data.mask, data.z, 0.0)
        error = (z[1:] - (z[:-1] if last else z.mean(axis=0)))[data.mask[1:]]
        return float(0.5 * np.log(2 * np.pi * np.e * error.var()))

    unseen = [series(100 + i, 400, missing=0.0) for i in range(3)]
    ours = np.mean([trained.sequence(s.z, s.mask, s.time).nll[10:].mean() for s in unseen])
    assert ours < np.mean([naive(s, True) for s in unseen]) - 0.1
    assert ours < np.mean([naive(s, False) for s in unseen]) - 0.5


def test_training_stops_early_or_at_its_budget_and_needs_data() -> None:
    ticks = iter(range(1_000))
    _, report = train_lstm([series(0, 200)], SMALL, time_budget_s=2, now_s=lambda: float(next(ticks)))
    assert report.stopped == "time_budget" and report.epochs < SMALL.epochs
    options = dataclasses.replace(SMALL, epochs=200, early_stopping=2, learning_rate=0.03)
    _, report = train_lstm([series(0, 150)], options)
    assert report.stopped == "converged" and report.best_epoch == report.epochs - 3
    with pytest.raises(ValueError, match="no series"):
        train_lstm([series(0, 1)], SMALL)


def test_averaging_keeps_the_running_mean_of_the_weights() -> None:
    options = dataclasses.replace(SMALL, epochs=3, early_stopping=0, averaging=0.6)
    passed: list[torch.Tensor] = []
    model, _ = train_lstm(
        [series(0), series(1)],
        options,
        after_step=lambda network: passed.append(network.head.bias.detach().clone()),
    )
    mean = passed[0]
    for step, now in enumerate(passed[1:], 1):
        decay = min(options.averaging, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * now
    assert np.allclose(model.weights["head_b"], mean.numpy(), atol=1e-6)
    assert not np.allclose(model.weights["head_b"], passed[-1].numpy(), atol=1e-4)


def test_event_files_are_written_on_request(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train_lstm([series(0, 100)], dataclasses.replace(SMALL, epochs=1), log_dir=tmp_path)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_int8_weights_are_small_and_close(trained: LstmModel) -> None:
    blob, data = quantise(trained), series(8, 300)
    assert len(blob) < 0.45 * len(trained.to_bytes())
    light = load_quantised(blob)
    exact = trained.sequence(data.z, data.mask, data.time).nll.mean()
    assert light.sequence(data.z, data.mask, data.time).nll.mean() == pytest.approx(exact, abs=0.05)
    with pytest.raises(ValueError, match="format"):
        load_quantised(trained.to_bytes())


def test_pruned_weights_stay_zero_through_fine_tuning(trained: LstmModel) -> None:
    data = [series(i) for i in range(3)]
    bare, tuned = prune(trained, 0.6, []), prune(trained, 0.6, data, epochs=3)
    for model in (bare, tuned):
        assert np.mean(model.weights["cell_w"] == 0) == pytest.approx(0.6, abs=0.01)
    probe = series(9, 300)

    def nll(model: LstmModel) -> float:
        return float(model.sequence(probe.z, probe.mask, probe.time).nll.mean())

    assert nll(tuned) < nll(bare)
    with pytest.raises(ValueError, match="share"):
        prune(trained, 1.0, [])


def test_a_student_learns_from_its_teacher(trained: LstmModel) -> None:
    data = [series(i, 300) for i in range(2)]
    student = distil(trained, dataclasses.replace(SMALL, hidden=8), data)
    probe = series(10, 300)
    teacher_says = trained.sequence(probe.z, probe.mask, probe.time)
    student_says = student.sequence(probe.z, probe.mask, probe.time)
    apart = np.abs(teacher_says.mean - student_says.mean)[10:].mean()
    assert apart < 0.5 * np.abs(teacher_says.mean).mean()


def test_serving_never_imports_torch() -> None:
    code = "import sys, detectors.lstm, detectors.lstm_kernel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
