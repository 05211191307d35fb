"""Drift of the features between the windows trained on and recent ones."""

from __future__ import annotations

import numpy as np
import pytest

from detectors import drift
from tests.detector_windows import slow_down, windows


def _values(seed: int, length: int = 1_500, factor: float = 1.0) -> np.ndarray:
    values, _ = windows(np.random.default_rng(seed), length)
    if factor != 1.0:
        slow_down(values, slice(0, length), factor)
    return values


def test_the_same_traffic_is_stable() -> None:
    verdict = drift.judge([_values(1), _values(2)], [_values(3), _values(4)])
    assert (verdict.drifted, verdict.reason) == (False, "stable")
    assert max(verdict.index.values()) < 0.1


def test_a_lasting_slowdown_is_drift_of_latency_only() -> None:
    verdict = drift.judge([_values(1), _values(2)], [_values(3, factor=1.3), _values(4, factor=1.3)])
    assert (verdict.drifted, verdict.reason) == (True, "drift")
    assert verdict.index["latency_p50_ms"] > drift.SHIFTED > verdict.index["request_count"]


def test_one_series_of_many_is_no_drift() -> None:
    recent = [_values(11, factor=1.5), *(_values(12 + k) for k in range(4))]
    assert not drift.judge([_values(k) for k in range(5)], recent).drifted


def test_short_samples_give_no_verdict() -> None:
    verdict = drift.judge([_values(1, 50)], [_values(2, 50)])
    assert verdict.reason == "too_few_windows" and not verdict.index
    assert np.isnan(drift.stability_index(np.zeros(10), np.zeros(10)))


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_constants_are_stable(constant: float) -> None:
    assert drift.stability_index(np.full(500, constant), np.full(500, constant)) == pytest.approx(
        0.0, abs=1e-9
    )
