"""What the pipeline may rely on: purity, determinism, states that survive, and sensible alarms."""

from __future__ import annotations

import hashlib
import struct

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import explain
from detectors.baseline import FAMILIES
from detectors.channels import CHANNELS
from detectors.ensemble import Ensemble
from detectors.layout import MU, STATE_WIDTH, WIDTH, WIDTH_BEFORE_WEEKS
from detectors.state import ALARM_WIDTH, SeriesStates
from detectors.types import FEATURES, STATISTIC_INDEX, STATISTICS, Float64, ScoreBatch, WindowBatch
from tests.detector_windows import WINDOW_MS, batch, scale, slow_down, windows

_I = STATISTIC_INDEX


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS)


def _services(seed: int, length: int, m: int = 3, requests: float = 60.0) -> tuple[Float64, Float64]:
    rng = np.random.default_rng(seed)
    pairs = [windows(rng, length, requests=requests) for _ in range(m)]
    return np.stack([v for v, _ in pairs], axis=1), np.stack([c for _, c in pairs], axis=1)


def _run(
    ensemble: Ensemble,
    values: Float64,
    counts: Float64,
    states: SeriesStates | None = None,
    start: int = 0,
) -> list[ScoreBatch]:
    states = ensemble.new_states() if states is None else states
    return [
        ensemble.score(batch(start + t, v, c), states)
        for t, (v, c) in enumerate(zip(values, counts, strict=True))
    ]


def _same(a: ScoreBatch, b: ScoreBatch) -> bool:
    arrays = ("score", "gbdt_score", "lstm_score", "tail_probability", "is_anomalous", "windows_seen")
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in arrays) and (
        a.reason == b.reason and a.explanations == b.explanations
    )


def test_scores_are_a_function_of_the_log(ensemble: Ensemble) -> None:
    values, counts = _services(1, 150)
    slow_down(values[:, 1], slice(120, 150), 5.0)
    first, second = _run(ensemble, values, counts), _run(ensemble, values, counts)
    assert all(_same(a, b) for a, b in zip(first, second, strict=True))


def test_rescore_changes_nothing_and_agrees_with_score(ensemble: Ensemble) -> None:
    values, counts = _services(2, 80)
    states = ensemble.new_states()
    _run(ensemble, values[:-1], counts[:-1], states)
    before = [states.dump(name) for name in ("model/000", "model/001", "model/002")]
    last = batch(79, values[-1], counts[-1])
    again = ensemble.rescore(last, states)
    unknown = WindowBatch(last.window_start_ms, WINDOW_MS, ["new/one"], values[-1, :1], counts[-1, :1])
    ensemble.rescore(unknown, states)
    assert [states.dump(name) for name in ("model/000", "model/001", "model/002")] == before
    assert "new/one" not in states
    assert _same(again, ensemble.score(last, states))


def test_a_row_does_not_depend_on_its_neighbours(ensemble: Ensemble) -> None:
    values, counts = _services(3, 90, m=4)
    together, alone = ensemble.new_states(), ensemble.new_states()
    for t in range(90):
        whole = ensemble.score(batch(t, values[t], counts[t]), together)
        single = ensemble.score(batch(t, values[t, 2:3], counts[t, 2:3], ["model/002"]), alone)
        assert whole.score[2] == single.score[0]
    assert together.dump("model/002") == alone.dump("model/002")


def test_halves_side_by_side_are_the_whole(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    values, counts = _services(6, 150, m=5)
    slow_down(values[:, 3], slice(120, 150), 5.0)
    rng = np.random.default_rng(6)
    metrics = {
        "toxicity": (rng.random((150, 5)), counts[:, :, 0]),
        "age": (rng.random((150, 5)), counts[:, :, 0]),
    }
    new = np.arange(5) == 4

    def run() -> tuple[list[ScoreBatch], list[bytes]]:
        states, found = ensemble.new_states(), []
        for t in range(150):
            own = {name: (mean[t], count[t]) for name, (mean, count) in metrics.items()}
            b = batch(t, values[t], counts[t])
            b = WindowBatch(b.window_start_ms, WINDOW_MS, b.series, b.values, b.counts, own, new)
            found.append(ensemble.score(b, states))
        return found, states.dump_all(b.series)

    whole, states = run()
    monkeypatch.setattr("detectors.ensemble.SIDE_BY_SIDE", 2)
    halves, states_of_halves = run()
    assert all(_same(a, b) for a, b in zip(whole, halves, strict=True))
    assert states_of_halves == states
    assert any(found.is_anomalous.any() for found in whole)


def test_states_survive_as_bytes(ensemble: Ensemble) -> None:
    values, counts = _services(4, 120)
    states = ensemble.new_states()
    _run(ensemble, values[:60], counts[:60], states)
    restored = ensemble.new_states()
    for name in ("model/002", "model/000", "model/001"):
        stored = states.dump(name)
        assert len(stored) <= 16_384
        restored.load(name, stored)
        assert restored.dump(name) == stored
    one, two = (
        _run(ensemble, values[60:], counts[60:], states, 60),
        _run(ensemble, values[60:], counts[60:], restored, 60),
    )
    assert all(_same(a, b) for a, b in zip(one, two, strict=True))


def test_user_metrics_survive_and_are_named(ensemble: Ensemble) -> None:
    values, counts = _services(5, 400, m=1)
    rng = np.random.default_rng(5)
    states = ensemble.new_states()
    named = set()
    for t in range(400):
        level = 0.8 if t >= 380 else 0.3
        extra = {"toxicity": (np.array([level + 0.01 * rng.standard_normal()]), counts[t, :, 0])}
        b = batch(t, values[t], counts[t])
        b = WindowBatch(b.window_start_ms, WINDOW_MS, b.series, b.values, b.counts, extra)
        if t == 200:
            moved = ensemble.new_states()
            moved.load("model/000", states.dump("model/000"))
            states = moved
        found = ensemble.score(b, states)
        named |= {c.feature for reasons in found.explanations for c in reasons[:3] if t >= 380}
    assert "metric.toxicity" in named


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_foreign_bytes_are_refused(junk: bytes) -> None:
    states = Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS).new_states()
    with pytest.raises(ValueError, match="state"):
        states.load("a", junk)


@given(st.integers(0, 10_000), st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_damaged_states_are_refused(position: int, bit: int) -> None:
    states = Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS).new_states()
    states.rows(["a"])
    stored = bytearray(states.dump("a"))
    stored[position % len(stored)] ^= 1 << bit
    with pytest.raises(ValueError, match="state"):
        states.load("b", bytes(stored))


def test_dropped_series_are_forgotten(ensemble: Ensemble) -> None:
    values, counts = _services(6, 40)
    states = ensemble.new_states()
    _run(ensemble, values, counts, states)
    states.drop("model/001")
    states.drop("never/seen")
    assert "model/001" not in states and len(states) == 2
    again = ensemble.score(batch(40, values[0], counts[0]), states)
    assert again.windows_seen.tolist() == [41, 1, 41]


@given(st.lists(st.integers(1, len(STATISTICS) - 1), unique=True))
@settings(max_examples=15, deadline=None)
def test_missing_statistics_are_no_trouble(missing: list[int]) -> None:
    ensemble = Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS)
    values, counts = _services(7, 40)
    values[:, :, missing], counts[:, :, missing] = np.nan, 0.0
    for found in _run(ensemble, values, counts):
        for scores in (found.score, found.gbdt_score, found.lstm_score):
            assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()
        assert (found.tail_probability > 0).all() and (found.tail_probability <= 1).all()


@pytest.mark.parametrize("errors", [1, 2])
def test_a_share_of_four_requests_is_no_alarm(ensemble: Ensemble, errors: int) -> None:
    values, counts = _services(8, 600, m=1, requests=4.0)
    values[500, 0, 0], counts[500, 0] = 4, 4
    for name in ("error_rate", "server_error_rate"):
        values[500, 0, _I[name]] = errors / 4
    found = _run(ensemble, values, counts)
    assert not found[500].is_anomalous.any()


@pytest.mark.parametrize("factor", [3.0, 6.0, 30.0])
def test_a_slowdown_is_found_quickly_and_named(ensemble: Ensemble, factor: float) -> None:
    """However far beyond what the detectors were trained on."""
    values, counts = _services(9, 1_000)
    slow_down(values[:, 1], slice(900, 960), factor)
    found = _run(ensemble, values, counts)
    first = next(t for t in range(900, 960) if found[t].is_anomalous[1])
    assert first <= 904
    assert not any(found[t].is_anomalous[0] for t in range(900, 960))
    reasons = found[first].explanations[1]
    assert {c.feature for c in reasons[:3]} & {"latency_p50_ms", "latency_p95_ms", "ttft_p50_ms"}
    assert sum(c.contribution for c in reasons) == pytest.approx(1.0)
    named = next(c for c in reasons if c.feature.startswith("latency"))
    assert named.observed is not None and named.low is not None and named.high is not None
    assert named.low <= named.expected <= named.high < named.observed


def test_what_lies_outside_its_band_is_named_before_what_does_not(ensemble: Ensemble) -> None:
    """A slow tail shows in internal statistics too; they must not speak through what looks usual."""
    values, counts = _services(12, 1_000, m=1)
    scale(values[:, 0], slice(900, 960), ("latency_p99_ms", "latency_max_ms", "ttft_p95_ms"), 6.0)
    found = _run(ensemble, values, counts)
    reasons = next(found[t].explanations[0] for t in range(900, 960) if found[t].is_anomalous[0])
    first = reasons[0]
    assert first.feature in {"latency_p99_ms", "ttft_p95_ms"}
    assert first.observed is not None and first.high is not None and first.observed > first.high


def test_an_incident_does_not_poison_the_baseline(ensemble: Ensemble) -> None:
    values, counts = _services(10, 1_200, m=1)
    slow_down(values[:, 0], slice(1_000, 1_200), 4.0)
    states = ensemble.new_states()
    _run(ensemble, values[:1_000], counts[:1_000], states)
    at = FEATURES.index("latency_p50_ms") * WIDTH + MU
    before = float(states.data[0, at])
    _run(ensemble, values[1_000:], counts[1_000:], states, 1_000)
    assert abs(float(states.data[0, at]) - before) < 0.1


def test_a_lasting_new_normal_is_announced_once_and_learned(ensemble: Ensemble) -> None:
    values, counts = _services(11, 1_700, m=1)
    slow_down(values[:, 0], slice(900, 1_700), 4.0)
    found = _run(ensemble, values, counts)
    announced = [t for t, f in enumerate(found) if f.reason == ["new_normal"]]
    assert len(announced) == 1 and 900 + 7 * 60 <= announced[0] <= 900 + 9 * 60
    assert not any(f.is_anomalous[0] for f in found[1_600:])


def test_silence_is_found_where_it_is_rare_and_only_there(ensemble: Ensemble) -> None:
    values, counts = _services(12, 1_500, m=2)
    rng = np.random.default_rng(12)
    on = np.repeat(rng.random(150) < 0.5, 10)  # the second service is silent half of the time
    silent = ~on
    silent[1_400:] = True
    values[silent, 1, 1:], counts[silent, 1], values[silent, 1, 0] = np.nan, 0.0, 0.0
    values[1_400:, 0, 1:], counts[1_400:, 0], values[1_400:, 0, 0] = np.nan, 0.0, 0.0
    found = _run(ensemble, values, counts)
    assert any(found[t].is_anomalous[0] for t in range(1_400, 1_405))
    assert not any(found[t].is_anomalous[1] for t in range(1_000, 1_410))


def test_many_states_at_once_are_the_single_ones(ensemble: Ensemble) -> None:
    states = ensemble.new_states()
    names = [f"s/{i:04d}" for i in range(600)]  # more than are packed together
    values, counts = _services(7, 1, m=len(names))
    ensemble.score(batch(0, values[0], counts[0], names), states)
    chosen = names[::-1]
    together = states.dump_all(chosen)
    assert together == [states.dump(name) for name in chosen]
    assert states.dump_all([]) == []
    with pytest.raises(KeyError):
        states.dump_all(["s/0000", "nobody"])
    other = ensemble.new_states()
    for name, stored in zip(chosen, together, strict=True):
        other.load(name, stored)
    assert np.array_equal(other.data[other.rows(names)], states.data[states.rows(names)])


@pytest.mark.parametrize("version", [1, 2])
def test_states_of_the_formats_before_are_read(ensemble: Ensemble, version: int) -> None:
    """Behind the same header the first held every number of the row, the second what it holds today."""
    values, counts = _services(8, 50)
    states = ensemble.new_states()
    _run(ensemble, values, counts, states)
    new = states.dump("model/001")
    header, check = struct.Struct("<4sBI8sHH"), 8
    magic, _, layout, tag, width, names = header.unpack_from(new)
    head = header.pack(magic, version, layout, tag, width, names)
    row = states.data[states.rows(["model/001"])[0]].astype("<f4")
    body = row.tobytes()
    if version == 2:
        fresh = ensemble.new_states()
        differs = row.view(np.uint32) != fresh.data[fresh.rows(["never seen"])[0]].view(np.uint32)
        body = np.packbits(differs, bitorder="little").tobytes() + row[differs].tobytes()
    restored = ensemble.new_states()
    restored.load("model/001", head + hashlib.sha256(head + body).digest()[:check] + body)
    assert restored.dump("model/001") == new
    assert len(new) < 0.8 * row.nbytes  # these services lack some channels, user metrics and 23 hours


def test_what_one_window_cannot_show_is_told_of_several_together(ensemble: Ensemble) -> None:
    """Accuracy falls from 0.9 to 0.3 where two labels come per window: either value alone is possible."""
    rng = np.random.default_rng(5)
    values, counts = _services(9, 420, m=1)
    accuracy = _I["accuracy"]
    right = np.where(np.arange(420) < 300, 0.9, 0.3)
    counts[:, 0, accuracy] = 2
    values[:, 0, accuracy] = rng.binomial(2, right) / 2
    told = [
        reason
        for scores in _run(ensemble, values, counts)[300:]
        for reasons in scores.explanations
        for reason in reasons
        if reason.feature == "accuracy"
    ]
    together = [reason for reason in told if reason.windows > 1]
    assert together and {reason.windows for reason in together} <= {3, 10, 40}
    for reason in together:
        assert None not in (reason.observed, reason.low, reason.high)
        assert not reason.low <= reason.observed <= reason.high  # type: ignore[operator]
    longest = [reason.observed for reason in together if reason.windows == 40]
    assert longest and abs(float(np.median(longest[-10:])) - 0.3) < 0.15  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "factor"), [("latency_p95_ms", 1.6), ("confidence_mean", 0.95)])
def test_a_small_lasting_shift_is_told_with_its_size(ensemble: Ensemble, name: str, factor: float) -> None:
    """On the second day, when every hour has its level."""
    values, counts = _services(10, 1_520, m=1, requests=8.0)
    place = _I[name]
    values[1_480:, 0, place] *= factor
    states = ensemble.new_states()
    _run(ensemble, values, counts, states)
    row = states.data[states.rows(["model/000"])[0]]
    scores = np.zeros(len(FAMILIES))
    scores[FAMILIES.index("z40")] = 5.0  # the horizon to look at
    found = explain.pooled(row, scores, place, n=8.0)
    assert found is not None
    windows, observed, expected, low, high = found
    assert windows == 40 and low < expected < high
    assert expected == pytest.approx(float(np.nanmean(values[:1_480, 0, place])), rel=0.05)
    assert 0.35 < (observed / expected - 1) / (factor - 1) < 1.1  # what came before it is in there too
    assert explain.pooled(row, scores, place, n=0.0) is None  # not measured now


def _office_weeks(days: int) -> tuple[Float64, Float64]:
    """Windows of ten minutes from a Monday on: busy by day, hardly on Saturdays and Sundays."""
    rng = np.random.default_rng(5)
    values, counts = windows(rng, 144 * days, requests=1.0)
    hour, day = np.arange(144 * days) // 6 % 24, np.arange(144 * days) // 144 % 7
    usual = np.where((hour >= 8) & (hour < 19), np.where(day < 5, 400.0, 60.0), 30.0)
    values[:, 0] = rng.poisson(usual)
    counts[:] = np.where(counts > 0, values[:, :1], 0.0)
    return values, counts


def test_a_weekend_is_expected_once_it_was_seen() -> None:
    ten_minutes, values_counts = 600_000, _office_weeks(21)
    ensemble = Ensemble.prior(false_alarms_per_week=1.0, window_ms=ten_minutes)
    states = ensemble.new_states()
    monday_ms = 4 * 86_400_000
    expected, odd = [], []
    for t, (v, c) in enumerate(zip(*values_counts, strict=True)):
        window = WindowBatch(monday_ms + t * ten_minutes, ten_minutes, ["a/b"], v[None], c[None])
        rows = states.rows(["a/b"])
        z = ensemble.evidence(window, states, rows).z
        band = explain.expected_band(states.data[rows[0]], 0, float(c[0]))
        expected.append(band[0] if band is not None else np.nan)
        odd.append(abs(float(z[0, 0, FAMILIES.index("z10")])))
    saturdays = [slice(144 * d + 6 * 9, 144 * d + 6 * 12) for d in (5, 12, 19)]
    off = [float(np.median(expected[s])) / 60.0 for s in saturdays]
    assert off[0] > 2.0, "the hour of the day alone expects a working day"
    assert off[2] < 0.6 * off[0]
    assert off[2] < 1.6
    assert np.mean(odd[saturdays[2]]) < 0.7 * np.mean(odd[saturdays[0]])
    monday = slice(144 * 14 + 6 * 9, 144 * 14 + 6 * 18)
    assert 0.6 < float(np.median(expected[monday])) / 400.0 < 1.6, "working days stay what they are"


def test_states_from_before_the_week_was_known_are_read(ensemble: Ensemble) -> None:
    values, counts = _services(7, 60)
    states = ensemble.new_states()
    _run(ensemble, values, counts, states)
    state = states.dump("model/001")
    head = struct.Struct("<4sBI8sHH")
    magic, version, _, tag, lstm_width, names = head.unpack_from(state)
    row = states.data[states.rows(["model/001"])[0]].copy()
    before = np.concatenate([row[:WIDTH_BEFORE_WEEKS], row[STATE_WIDTH:]]).astype("<f4")
    bits = np.zeros((len(before) + 31) // 32 * 32, np.uint8)
    bits[: len(before)] = 1
    body = np.packbits(bits, bitorder="little").tobytes() + before.tobytes()
    layout = hashlib.sha256(repr((CHANNELS, WIDTH_BEFORE_WEEKS + ALARM_WIDTH)).encode()).digest()[:4]
    own = head.pack(magic, version, int.from_bytes(layout, "little"), tag, lstm_width, names)
    check = struct.pack("<II", crc32c.crc32c(body, crc32c.crc32c(own)), len(body))
    states.drop("model/001")
    states.load("model/001", own + check + body)
    again = states.data[states.rows(["model/001"])[0]]
    kept = np.r_[:WIDTH_BEFORE_WEEKS, STATE_WIDTH : len(row)]
    assert np.array_equal(again[kept], row[kept])
    assert not again[WIDTH_BEFORE_WEEKS:STATE_WIDTH].any()
    assert row[WIDTH_BEFORE_WEEKS:STATE_WIDTH].any()
