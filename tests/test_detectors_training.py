"""Training on a user's windows: deterministic, refused with a reason, blind to what was excluded."""

from __future__ import annotations

import numpy as np
import pytest

from detectors import artifacts, faults, gbdt, judgement, training
from detectors.ensemble import Ensemble
from detectors.features import N_FEATURES
from detectors.training import SeriesHistory, TrainingResult, train
from storage.text import to_json
from tests.detector_windows import WINDOW_MS, batch, slow_down, windows

START_MS = 1_767_571_200_000
LENGTH = 500


@pytest.fixture(scope="module")
def champion() -> Ensemble:
    return Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS)


def _history(length: int = LENGTH, *, incident: bool = False) -> dict[str, SeriesHistory]:
    history = {}
    for k in range(3):
        values, counts = windows(np.random.default_rng(k), length, requests=20.0 * (k + 1))
        if incident and k == 0:
            slow_down(values, slice(100, 160), 6.0)
        starts = START_MS + WINDOW_MS * np.arange(length)
        history[f"model/{k}"] = SeriesHistory(starts, values, counts)
    return history


def _train(champion: Ensemble, history: dict[str, SeriesHistory], **changes: object) -> TrainingResult:
    settings: dict[str, object] = {
        "excluded": [],
        "labels": [],
        "seed": 7,
        "window_ms": WINDOW_MS,
        "max_windows": 10_000,
        "trained_at_ms": START_MS + WINDOW_MS * LENGTH,
    }
    return train(history, champion=champion, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(champion: Ensemble) -> TrainingResult:
    return _train(champion, _history())


def test_training_is_deterministic(champion: Ensemble, trained: TrainingResult) -> None:
    again = _train(champion, _history())
    assert again.artifact == trained.artifact
    assert again.promoted == trained.promoted
    assert (again.reason, again.metrics) == (trained.reason, trained.metrics)


def test_the_artefact_is_the_ensemble(trained: TrainingResult) -> None:
    loaded = artifacts.load(trained.artifact, false_alarms_per_week=1.0, window_ms=WINDOW_MS)
    assert loaded.version == trained.ensemble.version
    values, counts = windows(np.random.default_rng(9), 40)
    states = loaded.new_states(), trained.ensemble.new_states()
    for t in range(40):
        b = batch(t, values[t : t + 1], counts[t : t + 1])
        one, two = loaded.score(b, states[0]), trained.ensemble.score(b, states[1])
        assert (one.score, one.lstm_score) == (two.score, two.lstm_score)


def test_figures_say_how_both_did(trained: TrainingResult) -> None:
    for name in ("champion", "challenger"):
        assert 0.0 <= trained.metrics[f"{name}_average_precision"] <= 1.0
        assert 0.0 <= trained.metrics[f"{name}_recall"] <= 1.0
    assert trained.metrics["windows"] == 3 * LENGTH and trained.reason


def test_the_course_of_a_training_is_kept(trained: TrainingResult) -> None:
    curves = trained.metrics["curves"]
    assert set(curves) == {"trees_loss", "lstm_train_loss", "lstm_held_out_loss"}
    assert len(curves["trees_loss"]) == 80 and curves["trees_loss"][-1] <= curves["trees_loss"][0]
    assert 1 <= len(curves["lstm_train_loss"]) == len(curves["lstm_held_out_loss"]) <= 6
    assert all(np.isfinite(values).all() for values in curves.values())
    assert "curves" not in trained.ensemble.metadata
    assert all(type(value) is float for values in curves.values() for value in values)
    assert to_json(trained.metrics), "what is stored with the version"


def test_states_of_the_champion_serve_the_challenger(champion: Ensemble, trained: TrainingResult) -> None:
    values, counts = windows(np.random.default_rng(4), 60)
    states = champion.new_states()
    for t in range(50):
        champion.score(batch(t, values[t : t + 1], counts[t : t + 1]), states)
    kept = states.dump("model/000")
    for t in range(50, 60):
        found = trained.ensemble.score(batch(t, values[t : t + 1], counts[t : t + 1]), states)
    assert found.windows_seen.tolist() == [60]
    fresh = trained.ensemble.new_states()
    fresh.load("model/000", kept)
    for t in range(50, 60):
        again = trained.ensemble.score(batch(t, values[t : t + 1], counts[t : t + 1]), fresh)
    assert again.score == found.score
    assert fresh.dump("model/000") == states.dump("model/000")


def test_too_little_history_is_refused_with_a_reason(champion: Ensemble) -> None:
    for history in ({}, _history(100)):
        result = _train(champion, history)
        assert not result.promoted and "windows of history" in result.reason
        assert result.ensemble.version == champion.version


def test_excluded_incidents_are_not_learned_as_normal(champion: Ensemble) -> None:
    incident = [("model/0", START_MS + 95 * WINDOW_MS, START_MS + 200 * WINDOW_MS), ("gone/1", 0, 1)]
    with_it = _train(champion, _history(incident=True), excluded=incident)
    as_fault = _train(champion, _history(incident=True), labels=[(*incident[0], True)])
    assert with_it.artifact != as_fault.artifact


def test_every_labelled_interval_is_an_event_of_its_own() -> None:
    at = START_MS + WINDOW_MS * np.arange(200)
    faulty = [("a", int(at[70]), int(at[80]), True), ("a", int(at[100]), int(at[105]), True)]
    calm = ("b", int(at[150]), int(at[160]), False)
    known = training._known(at, ["a", "b"], [("b", int(at[0]), int(at[5]))], [*faulty, calm])
    assert known.label[:, 0].tolist() == [70 <= t < 80 or 100 <= t < 105 for t in range(200)]
    assert (known.label[:5, 1] == -1).all() and (known.told[:5, 1] == -1).all()
    assert len(np.unique(known.event)) == 4  # none, and three intervals
    judged = training._unjudged(known, 130)
    np.testing.assert_array_equal(judged.label[:130], known.label[:130])
    assert (judged.label[150:200, 1] == -1).all() and (judged.label[130:150, 1] == 0).all()
    picked = training._pick_told(known, np.ones((200, 2), bool), np.random.default_rng(1))
    assert set(np.unique(known.event[picked])) == set(np.unique(known.event)) - {-1}
    values, counts = np.zeros((200, 2, 1), np.float32), np.zeros((200, 2, 1), np.float32)
    course = training._course(
        *(at, values, counts, np.ones((200, 2), bool), judged),
        copies=0,
        window_ms=WINDOW_MS,
        rng=np.random.default_rng(1),
    )
    assert len(np.unique(course.event[course.event >= 0])) == 2


def test_labels_on_the_newest_windows_train_and_do_not_judge(champion: Ensemble) -> None:
    begin, end = 420, 450
    history = _history()
    slow_down(history["model/0"].values, slice(begin, end), 6.0)
    interval = ("model/0", START_MS + begin * WINDOW_MS, START_MS + end * WINDOW_MS)
    labelled = _train(champion, history, labels=[(*interval, True)])
    aside = _train(champion, history, excluded=[interval])
    assert labelled.ensemble.forest.text != aside.ensemble.forest.text
    assert labelled.metrics["held_out_faults"] > 0


def test_injected_faults_change_only_what_they_say() -> None:
    values, counts = windows(np.random.default_rng(2), 2_000)
    normal = np.ones(2_000, bool)
    normal[500:700] = False
    kept = values.copy()
    rng = np.random.default_rng(3)
    changed_values, changed_counts, changed, done = faults.inject(
        values, counts, normal=normal, rng=rng, every=60, longest=120
    )
    np.testing.assert_array_equal(values, kept)
    inside = np.zeros(2_000, bool)
    for fault in done:
        inside[fault.start : fault.end] = True
    assert len(done) > 5 and not (inside & ~normal).any() and not (changed & ~inside).any()
    np.testing.assert_array_equal(changed_values[~inside], values[~inside])
    np.testing.assert_array_equal(changed_counts[~inside], counts[~inside])
    shares = changed_values[:, 1]
    assert ((shares >= 0) & (shares <= 1) | np.isnan(shares)).all() and (changed_counts >= 0).all()


def test_rows_without_trust_hold_the_forest_and_trusted_rows_move_it(champion: Ensemble) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1.5, (600, N_FEATURES)).astype(np.float32)
    x[:60, 0] += 9.0
    before = champion.forest.logit(x)
    against = (before < 0).astype(float)  # the opposite of what the forest says
    held = gbdt.go_on(champion.forest, x, against, np.zeros(600), seed=1, rounds=40)
    assert np.abs(held.logit(x) - before).max() < 1e-3
    trust = np.zeros(600)
    trust[:60] = 1.0
    moved = gbdt.go_on(champion.forest, x, against, trust, seed=1, rounds=40).logit(x) - before
    assert (moved[:60] * np.where(against[:60] > 0, 1, -1)).mean() > 3 * np.abs(moved[60:]).mean() > 0


def test_a_gain_in_few_series_is_no_reason_to_promote() -> None:
    rng = np.random.default_rng(6)
    label = np.zeros((400, 8), np.int8)
    label[200:220] = 1
    old = rng.normal(0, 1, label.shape) + 2.0 * (label == 1)
    lucky = old.copy()
    lucky[200:220, 0] += 9.0
    everywhere = old + 2.0 * (label == 1)
    use = np.ones(label.shape, bool)
    assert judgement.share_of_gains(old, everywhere, label, use) == 1.0
    assert judgement.share_of_gains(old, lucky, label, use) < 0.9
