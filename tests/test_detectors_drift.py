"""Drift of the features between the windows trained on and recent ones."""

from __future__ import annotations

import numpy as np
import pytest

from detectors import drift
from detectors.types import FEATURES
from tests.detector_windows import slow_down, windows

LATENCY, ERRORS = FEATURES.index("latency_p50_ms"), FEATURES.index("error_rate")


def sample(seed: int, length: int = 1_500, factor: float = 1.0, days: int = 1) -> drift.Sample:
    rng = np.random.default_rng(seed)
    values, _ = windows(rng, length)
    if factor != 1.0:
        slow_down(values, slice(0, length), factor)
    columns = np.concatenate([values[:, : len(FEATURES)], rng.random((length, 1))], axis=1)
    return drift.Sample(columns, np.arange(length) * days // length)


def judge(reference: list[drift.Sample], recent: list[drift.Sample]) -> drift.Drift:
    prepared = {f"s{i}": drift.prepare(each) for i, each in enumerate(reference)}
    return drift.judge(prepared, {f"s{i}": each for i, each in enumerate(recent)})


def test_the_same_traffic_is_stable() -> None:
    verdict = judge([sample(1), sample(2, days=5)], [sample(3), sample(4)])
    assert (verdict.drifted, verdict.reason, verdict.shifted) == (False, "stable", ())
    assert max(verdict.index.values()) < 0.1
    assert set(verdict.index) > {"latency_p50_ms", "request_count", "score"}


def test_a_lasting_slowdown_is_drift_of_latency_only() -> None:
    verdict = judge([sample(1), sample(2, days=5)], [sample(3, factor=1.3), sample(4, factor=1.3)])
    assert (verdict.drifted, verdict.reason) == (True, "drift")
    assert verdict.index["latency_p50_ms"] > drift.SHIFTED > verdict.index["request_count"]
    assert all(name.startswith(("latency", "ttft")) for name in verdict.shifted)


def test_one_series_of_many_is_no_drift() -> None:
    recent = [sample(11, factor=1.5), *(sample(12 + k) for k in range(4))]
    assert not judge([sample(k) for k in range(5)], recent).drifted


def test_series_that_wander_each_its_own_way_are_no_drift() -> None:
    factors = (1.5, 0.6, 1.4, 0.7, 1.6, 0.65)
    reference = [sample(k) for k in range(6)]
    apart = judge(reference, [sample(20 + k, factor=factor) for k, factor in enumerate(factors)])
    assert apart.index["latency_p50_ms"] > drift.SHIFTED and not apart.drifted
    together = judge(reference, [sample(20 + k, factor=1.3 + k / 10) for k in range(6)])
    assert together.drifted and "latency_p50_ms" in together.shifted


def test_scores_drift_too() -> None:
    recent = sample(2)
    recent.values[:, -1] = recent.values[:, -1] * 0.3 + 0.6
    assert judge([sample(1)], [recent]).shifted == ("score",)


def test_a_day_that_differs_as_the_days_before_did_is_no_drift() -> None:
    def uneven(seed: int) -> drift.Sample:
        found = sample(seed, 1_750, days=7)
        found.values[:, LATENCY] *= 1.0 + 0.25 * (found.day % 3)
        return found

    recent = [sample(5, 400), sample(6, 400)]
    for each in recent:
        each.values[:, LATENCY] *= 1.5
    index = judge([uneven(1), uneven(2)], recent)
    assert index.index["latency_p50_ms"] > drift.SHIFTED
    assert "latency_p50_ms" not in index.shifted
    for each in recent:
        each.values[:, LATENCY] *= 2.0
    assert "latency_p50_ms" in judge([uneven(1), uneven(2)], recent).shifted


def test_short_samples_give_no_verdict() -> None:
    verdict = judge([sample(1, 50)], [sample(2, 50)])
    assert verdict.reason == "too_few_windows" and not verdict.index
    assert judge([], []).reason == "too_few_windows"
    assert np.isnan(drift.stability_index(np.zeros(10), np.zeros(10)))


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_constants_are_stable_and_leaving_them_shows_either_way(constant: float) -> None:
    reference = np.full(500, constant)
    assert drift.stability_index(reference, reference) == pytest.approx(0.0, abs=1e-9)
    for away in (-0.1, 0.1):
        recent = np.where(np.arange(500) % 3 == 0, constant + away, constant)
        assert drift.stability_index(reference, recent) > drift.SHIFTED
