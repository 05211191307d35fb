"""The alert state machine: order of its transitions, hysteresis, amendments, bytes, and plain words."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.types import STATISTICS, Contribution, ScoreBatch, WindowBatch
from monitor import alerting, explain
from monitor.alerting import AlertState, Observation, decide, decide_amended
from monitor.config import DetectionSettings
from monitor.windows import AmendedWindow, ClosedWindows, SeriesInfo, Slice
from storage.types import AlertTransition

WINDOW_MS = 60_000
SETTINGS = DetectionSettings(resolve_after_windows=3)
LATENCY = Contribution("latency_p95_ms", 2_100.0, 800.0, 700.0, 900.0, 0.8)
ERRORS = Contribution("error_rate", 0.12, 0.0, 0.0, 0.01, 0.7)


def seen(
    number: int, anomalous: bool, *, score: float = 0.9, tail: float = 1e-5, top: Contribution = LATENCY
) -> Observation:
    start = number * WINDOW_MS
    return Observation(
        *("m/a", "m", "a", start, start + WINDOW_MS, score, tail, anomalous),
        reason="spike" if anomalous else "normal",
        contributions=(top,) if anomalous else (),
        exemplars=["r1"] if anomalous else [],
    )


def run(pattern: list[bool]) -> tuple[AlertState | None, list[AlertTransition]]:
    state, told = None, []
    for number, anomalous in enumerate(pattern):
        state, new, _ = decide(state, seen(number, anomalous), SETTINGS)
        told += new
    return state, told


@given(st.lists(st.booleans(), max_size=60))
def test_an_alert_is_fired_once_and_ends_only_after_enough_calm(pattern: list[bool]) -> None:
    _, told = run(pattern)
    open_id, ids = None, set()
    for t in told:
        if t.kind == "fired":
            assert open_id is None and t.alert.alert_id not in ids
            assert pattern[t.at_ms // WINDOW_MS - 1]
            open_id = t.alert.alert_id
            ids.add(open_id)
        else:
            assert t.alert.alert_id == open_id
        if t.kind == "resolved":
            last = t.at_ms // WINDOW_MS
            assert not any(pattern[last - 3 : last])
            assert pattern[last - 4]
            assert t.alert.resolved_at_ms == (last - 2) * WINDOW_MS  # end of the first calm window
            assert t.alert.window_end_ms == (last - 3) * WINDOW_MS  # end of the newest anomalous one
            open_id = None
    assert [t.at_ms for t in told] == sorted(t.at_ms for t in told)
    assert any(pattern) == bool(ids)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_bytes_in_between_change_nothing(pattern: list[bool], cut: int) -> None:
    state = None
    for number, anomalous in enumerate(pattern):
        if number == cut and state is not None:
            again = AlertState.from_bytes(state.to_bytes())
            assert again == state
            assert again.to_bytes() == state.to_bytes()
            state = again
        state, _, _ = decide(state, seen(number, anomalous), SETTINGS)
    assert state == run(pattern)[0]


@pytest.mark.parametrize("data", [b"", b"x", b"\xc1", b"\x92\x02\xc0"])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="alert state"):
        AlertState.from_bytes(data)


def test_updates_tell_only_what_matters() -> None:
    state, _, _ = decide(None, seen(0, True), SETTINGS)
    state, told, reason = decide(state, seen(1, True), SETTINGS)
    assert (told, reason) == ([], "still_anomalous")
    state, told, reason = decide(state, seen(2, True, score=0.5, top=ERRORS), SETTINGS)
    assert (told, reason) == ([], "still_anomalous")  # a lower score does not change the explanation
    state, told, reason = decide(state, seen(3, True, score=0.95, top=ERRORS), SETTINGS)
    assert reason == "other_top_feature"
    assert told[0].alert.top_features[0]["feature"] == "error_rate"
    state, told, reason = decide(state, seen(4, True, score=0.91, tail=1e-9), SETTINGS)
    assert reason == "severity_raised"
    assert (told[0].alert.severity, told[0].alert.score) == ("critical", 0.95)
    assert state is not None and state.windows == 5


def test_severity_is_rarity_and_duration() -> None:
    assert alerting.severity(1e-4, 60, 0) == "warning"
    assert alerting.severity(60 / (91 * 86_400), 60, 0) == "major"
    assert alerting.severity(1e-9, 60, 0) == "critical"
    assert alerting.severity(1e-4, 60, 1_800) == "major"
    assert alerting.severity(1e-9, 60, 99_999) == "critical"


def test_late_data_withdraws_an_alert_without_reason() -> None:
    state, _, _ = decide(None, seen(5, True), SETTINGS)
    state, _, _ = decide(state, seen(6, True), SETTINGS)
    state, told, reason = decide_amended(state, seen(5, False), 8 * WINDOW_MS)
    assert (told, reason) == ([], "taken_back")
    state, told, reason = decide_amended(state, seen(6, False), 8 * WINDOW_MS)
    assert (state, reason) == (None, "withdrawn")
    assert (told[0].kind, told[0].at_ms, told[0].alert.status) == ("withdrawn", 8 * WINDOW_MS, "withdrawn")


def test_late_data_withdraws_a_resolved_alert_too_and_can_fire_one() -> None:
    state, _ = run([True, False, False, False])
    assert state is not None and state.status == "resolved"
    same, told, reason = decide_amended(state, seen(0, True), 6 * WINDOW_MS)
    assert (same, told, reason) == (state, [], "unchanged")
    gone, told, reason = decide_amended(state, seen(0, False), 6 * WINDOW_MS)
    assert (gone, reason, told[0].kind) == (None, "withdrawn", "withdrawn")
    fired, told, reason = decide_amended(None, seen(2, True), 6 * WINDOW_MS)
    assert (reason, told[0].kind, told[0].at_ms) == ("fired_late", "fired", 6 * WINDOW_MS)
    assert fired is not None and fired.alert.window_start_ms == 2 * WINDOW_MS


def test_a_late_window_joins_without_ending_the_calm_after_it() -> None:
    state, _ = run([True, False, False])
    state, _, reason = decide_amended(state, seen(0, True), 4 * WINDOW_MS)
    assert reason == "unchanged"
    state, _, _ = decide(None, seen(1, True), SETTINGS)
    state, _, _ = decide(state, seen(2, False), SETTINGS)
    state, told, reason = decide_amended(state, seen(0, True), 4 * WINDOW_MS)
    assert (told, reason) == ([], "joined")
    assert state is not None and (state.calm, state.alert.window_start_ms) == (1, 0)


def batch_of(number: int, anomalous: list[bool], names: list[str]) -> tuple[ClosedWindows, ScoreBatch]:
    m = len(names)
    values = np.full((m, len(STATISTICS)), np.nan)
    values[:, 0] = 10
    batch = WindowBatch(number * WINDOW_MS, WINDOW_MS, names, values, np.zeros_like(values))
    infos = [SeriesInfo(name, "m", name, 0, 0, None) for name in names]
    asked: list[int] = []

    def slices(row: int) -> list[Slice]:
        asked.append(row)
        assert anomalous[row], "slices are only asked for where they are needed"
        return [Slice("model_version", "v7", 90, 1, 10.0), Slice("model_version", "v6", 10, 0, 10.0)]

    closed = ClosedWindows(batch, infos, [None] * m, slices, lambda row: {"slow": ["r9"], "any": ["r1"]})
    flags = np.array(anomalous)
    scores = ScoreBatch(
        *(np.where(flags, 0.9, 0.1), np.zeros(m), np.zeros(m), np.where(flags, 1e-5, 0.5), flags),
        reason=["spike" if a else "normal" for a in anomalous],
        windows_seen=np.ones(m, np.int64),
        explanations=[(LATENCY,) if a else () for a in anomalous],
    )
    return closed, scores


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=25))
def test_a_batch_is_the_same_as_its_series_one_by_one(pattern: list[list[bool]]) -> None:
    names = ["a", "b", "c"]
    states: dict[str, AlertState] = {}
    told: list[AlertTransition] = []
    for number, flags in enumerate(pattern):
        told += alerting.step(states, *batch_of(number, flags, names), SETTINGS)
    for column, name in enumerate(names):
        own: dict[str, AlertState] = {}
        alone: list[AlertTransition] = []
        for number, flags in enumerate(pattern):
            alone += alerting.step(own, *batch_of(number, [flags[column]], [name]), SETTINGS)
        assert [t for t in told if t.alert.series == name] == alone
        assert states.get(name) == own.get(name)
    assert told == sorted(told, key=lambda t: (t.at_ms, t.alert.series, t.kind))


def test_only_series_with_something_to_say_have_state_and_old_ones_are_forgotten() -> None:
    states: dict[str, AlertState] = {}
    told = alerting.step(states, *batch_of(0, [False, True, False], ["a", "b", "c"]), SETTINGS)
    assert list(states) == ["b"]
    assert told[0].alert.model_versions == ["v6", "v7"]
    assert told[0].alert.exemplars == ["r9", "r1"]
    for number in range(1, 4):
        told = alerting.step(states, *batch_of(number, [False] * 3, ["a", "b", "c"]), SETTINGS)
    assert [t.kind for t in told] == ["resolved"]
    day = 86_400_000 // WINDOW_MS
    alerting.step(states, *batch_of(day + 5, [False] * 3, ["a", "b", "c"]), SETTINGS)
    assert states == {}


def test_a_series_that_expires_resolves_its_alert() -> None:
    states: dict[str, AlertState] = {}
    alerting.step(states, *batch_of(0, [True], ["a"]), SETTINGS)
    told = alerting.expire(states, "a", 10 * WINDOW_MS)
    assert [(t.kind, t.at_ms) for t in told] == [("resolved", 10 * WINDOW_MS)]
    assert alerting.expire(states, "a", 10 * WINDOW_MS) == []


def test_amend_goes_through_the_same_doors() -> None:
    states: dict[str, AlertState] = {}
    alerting.step(states, *batch_of(3, [True], ["a"]), SETTINGS)
    closed, scores = batch_of(3, [False], ["a"])
    amended = AmendedWindow(closed.batch, closed.infos[0], b"", 1, 5 * WINDOW_MS)
    told = alerting.amend(states, amended, scores, SETTINGS)
    assert [t.kind for t in told] == ["withdrawn"]
    assert states == {}


# ------------------------------------------------------------------ plain words


def test_the_sentence_says_what_where_how_much_since_when_and_who() -> None:
    guilty = [{"field": "model_version", "value": "v7", "share": 1.0, "traffic_share": 0.5, "reason": ""}]
    text = explain.sentence(
        "m/app-3", [LATENCY], guilty, since_ms=14 * 3_600_000 + 300_000, window_ms=60_000, score=0.9
    )
    assert text == (
        "p95 latency of m/app-3 is 2.1 s, usually 700 to 900 ms at this hour; since 14:05 UTC; "
        "all of it from version v7"
    )


def test_the_sentence_says_over_how_long_and_leaves_out_what_is_as_usual() -> None:
    accuracy = Contribution("accuracy", 0.12, 0.72, 0.55, 0.89, 0.7, windows=10)
    as_usual = Contribution("error_rate", 0.0, 0.001, 0.0, 0.02, 0.3)
    rest = {"since_ms": 0, "window_ms": 60_000, "score": 0.9}
    assert explain.sentence("m/a", [accuracy, as_usual], [], **rest) == (
        "accuracy of m/a over the last 10 min is 12%, usually 55% to 89% at this hour; since 00:00 UTC"
    )
    slow = Contribution("latency_p95_ms", 990.0, 800.0, 700.0, 900.0, 0.3, windows=40)
    assert "; also p95 latency over the last 40 min 990 ms, usually" in explain.sentence(
        "m/a", [accuracy, slow], [], **rest
    )
    assert [row["windows"] for row in explain.feature_rows([accuracy, as_usual])] == [10, 1]


@pytest.mark.parametrize(
    ("contribution", "begin"),
    [
        (
            Contribution("request_count", 0, 50, 40.0, 60.0, 1),
            "no requests reach s, usually 40 to 60 requests",
        ),
        (ERRORS, "error rate of s is 12%, usually 0% to 1% at this hour"),
        (
            Contribution("memory_mb_max", 20_480, 8_192, None, None, 1),
            "peak memory of s is 20 GB, usually about",
        ),
        (Contribution("cost_usd_sum", 1.5, 0.5, None, None, 1), "cost of s is $1.50, usually about $0.50"),
        (Contribution("metric.depth", 3, 1, math.nan, 1, 1), "depth of s is 3, usually about 1"),
        (Contribution("accuracy", None, 0.9, 0.8, 0.95, 1), "accuracy of s cannot be measured any more"),
    ],
)
def test_units_follow_the_feature(contribution: Contribution, begin: str) -> None:
    assert explain.sentence("s", [contribution], [], since_ms=0, window_ms=60_000, score=0.5).startswith(
        begin
    )


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (60 / 1_800, "once an hour or more"),
        (60 / 86_400, "once a day"),
        (60 / (7 * 86_400), "once in 7 days"),
        (60 / (90 * 86_400), "once in 3 months"),
        (60 / (3 * 365.25 * 86_400), "once in 3 years"),
        (1e-300, "less than once in 100 years"),
    ],
)
def test_rarity_in_words(tail: float, text: str) -> None:
    assert explain.rarity(tail, 60).startswith(text)


def test_guilt_needs_more_than_its_share_of_the_traffic() -> None:
    fair = [Slice("tenant", "a", 80, 8, 10.0), Slice("tenant", "b", 20, 2, 10.0)]
    assert explain.guilty_slices(fair, [ERRORS]) == []
    unfair = [Slice("tenant", "a", 80, 1, 10.0), Slice("tenant", "b", 20, 19, 10.0)]
    assert explain.guilty_slices(unfair, [ERRORS]) == [
        {
            "field": "tenant",
            "value": "b",
            "share": 0.95,
            "traffic_share": 0.2,
            "reason": "95% of the errors, 20% of the traffic",
        }
    ]
    slow = [Slice("model_version", "v6", 50, 0, 100.0), Slice("model_version", "v7", 50, 0, 900.0)]
    assert explain.guilty_slices(slow, [LATENCY])[0]["value"] == "v7"
    assert explain.guilty_slices(slow, [ERRORS]) == []
    assert explain.guilty_slices(slow[:1], [LATENCY]) == []


@given(st.permutations(range(6)))
def test_guilt_does_not_depend_on_the_order_of_slices(order: list[int]) -> None:
    slices = [
        *(Slice("tenant", t, 10, e, 50.0) for t, e in (("a", 9), ("b", 0))),
        *(Slice("region", r, 10, e, 50.0) for r, e in (("x", 0), ("y", 9))),
        *(Slice("error_type", t, n, n, math.nan) for t, n in (("oom", 5), ("bad", 4))),
    ]
    assert explain.guilty_slices([slices[i] for i in order], [ERRORS]) == explain.guilty_slices(
        slices, [ERRORS]
    )


def test_features_become_json_without_nan() -> None:
    rows = explain.feature_rows([dataclasses.replace(LATENCY, low=math.nan, expected=None)])
    assert rows[0]["low"] is None
    assert rows[0]["expected"] is None
    assert rows[0]["observed"] == 2_100.0


def learned(number: int) -> Observation:
    """The window in which the detectors take what lasts for normal."""
    return dataclasses.replace(seen(number, False), reason="new_normal")


def test_a_new_normal_ends_a_firing_alert_at_once_and_is_announced_once() -> None:
    state, _ = run([True] * 5)
    state, new, reason = decide(state, learned(5), SETTINGS)
    assert reason == "new_normal"
    assert [(t.kind, t.alert.reason, t.alert.resolved_at_ms) for t in new] == [
        ("resolved", "new_normal", 6 * WINDOW_MS)
    ]
    assert state is not None and state.alert == new[0].alert
    for number in range(6, 20):  # evidence that dies away belongs to what was announced
        state, new, reason = decide(state, seen(number, True), SETTINGS)
        assert (new, reason) == ([], "settling")
    state, new, _ = decide(state, learned(20), SETTINGS)
    assert new == []


def test_a_fault_after_a_new_normal_fires_again() -> None:
    state, _ = run([True] * 5)
    state, _, _ = decide(state, learned(5), SETTINGS)
    state, _, _ = decide(state, seen(6, False), SETTINGS)
    assert decide(state, seen(7, True), SETTINGS)[2] == "fired"
    state, _ = run([True] * 5)
    state, _, _ = decide(state, learned(5), SETTINGS)
    number = 6
    while (decided := decide(state, seen(number, True), SETTINGS))[2] == "settling":
        state, number = decided[0], number + 1
    assert decided[2] == "fired" and number == 6 + alerting.SETTLING_WINDOWS


def test_an_alert_that_ended_before_is_told_of_the_new_normal_and_nothing_else_is() -> None:
    state, _ = run([True, False, False, False])
    assert state is not None and state.status == "resolved"
    told_state, new, reason = decide(state, learned(9), SETTINGS)
    assert reason == "new_normal"
    assert [(t.kind, t.alert.status, t.alert.reason) for t in new] == [("updated", "resolved", "new_normal")]
    assert new[0].alert.resolved_at_ms == state.alert.resolved_at_ms
    assert AlertState.from_bytes(told_state.to_bytes()) == told_state  # type: ignore[union-attr]
    assert decide(None, learned(9), SETTINGS) == (None, [], "quiet")
