"""Budget -> threshold, height -> rarity, and what clean services do under them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import bar, fitting
from detectors.calibration import Calibration
from detectors.ensemble import Ensemble
from detectors.threshold import height_for
from tests.detector_windows import WINDOW_MS, batch, windows


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS).calibration


PRIOR = Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS).calibration
BUDGET = st.floats(0.01, 100.0)


@given(BUDGET, BUDGET)
def test_a_larger_budget_never_means_a_higher_threshold(one: float, two: float) -> None:
    low, high = sorted((one, two))
    heights = [height_for(PRIOR, false_alarms_per_week=b, window_ms=WINDOW_MS) for b in (low, high)]
    assert heights[0] >= heights[1]


@given(BUDGET, st.sampled_from([10_000, 60_000, 300_000]))
def test_longer_windows_need_less_height(budget: float, window_ms: int) -> None:
    now = height_for(PRIOR, false_alarms_per_week=budget, window_ms=window_ms)
    longer = height_for(PRIOR, false_alarms_per_week=budget, window_ms=2 * window_ms)
    assert longer <= now


@given(
    st.lists(st.floats(0.001, 1e4), min_size=2, max_size=9),
    st.lists(st.floats(0.01, 3.0), min_size=2, max_size=9),
    st.floats(0.01, 100.0),
)
def test_a_table_of_any_size_gives_a_height(events: list[float], steps: list[float], budget: float) -> None:
    """Between two levels it lies between them; a rarer event than the table knows lies above it."""
    n = min(len(events), len(steps))
    events, levels = sorted(events[:n], reverse=True), np.cumsum(steps[:n]).tolist()
    found = bar.height_for(levels, events, false_alarms_per_week=budget, window_ms=WINDOW_MS)
    wanted = 0.6 * budget
    assert found >= levels[0] - 1e-9
    assert (found > levels[-1]) == (wanted < events[-1] * (1 - 1e-12)) or wanted == pytest.approx(events[-1])
    for low, high, often, seldom in zip(levels, levels[1:], events, events[1:], strict=False):
        if often > wanted > seldom:
            assert low - 1e-9 <= found <= high + 1e-9


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=50))
def test_higher_is_rarer(heights: list[float]) -> None:
    tail = PRIOR.tail_probability(np.sort(np.array(heights)))
    assert (tail > 0).all() and (tail <= 1).all() and (np.diff(tail) <= 0).all()


def test_calibration_survives_json(calibration: Calibration) -> None:
    assert Calibration.from_json(calibration.to_json()) == calibration
    with pytest.raises((KeyError, TypeError)):
        Calibration.from_json({**calibration.to_json(), "weights": [1.0]})


@given(st.lists(st.integers(0, 2_000), max_size=30))
def test_clusters_are_counted_apart(at: list[int]) -> None:
    high = np.zeros(2_001, bool)
    high[at] = True
    gaps = np.diff(sorted(set(at)))
    assert fitting.clusters(high) == bool(at) + int((gaps > fitting.DECLUSTER).sum())


@pytest.mark.parametrize("budget", [0.2, 1.0, 5.0])
def test_a_table_of_known_tails_keeps_the_budget(budget: float) -> None:
    """Independent Gumbel-like noise: what the threshold lets through is the budget times the margin."""
    rng = np.random.default_rng(5)
    height = rng.exponential(1.0, (20_160, 40)) - 4.0
    fitted = fitting.tabulate(np.zeros(7), 0.0, height)
    level = height_for(fitted, false_alarms_per_week=budget, window_ms=WINDOW_MS)
    fresh = rng.exponential(1.0, (20_160, 200)) - 4.0
    rate = fitting.clusters_per_week(fresh, level, fresh.size)
    assert 0.3 * budget <= rate <= 1.5 * budget


def test_steady_services_stay_calm() -> None:
    """Twelve Poisson services for two days: at most the budget's share of false events."""
    ensemble = replace(Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS))
    rng = np.random.default_rng(6)
    pairs = [windows(rng, 2_880, requests=float(r)) for r in np.geomspace(0.5, 200, 12)]
    states = ensemble.new_states()
    alarms = np.zeros((2_880, 12), bool)
    for t in range(2_880):
        values, counts = (np.stack([p[k][t] for p in pairs]) for k in (0, 1))
        alarms[t] = ensemble.score(batch(t, values, counts), states).is_anomalous
    events = sum(fitting.clusters(alarms[:, j]) for j in range(12))
    assert events <= 6
