"""What a baseline makes of changes: hours of the day are known once seen, an outbreak counts for the next."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.baseline import FAMILIES
from detectors.channels import CHANNELS
from detectors.ensemble import Ensemble
from detectors.layout import LAST, WIDTH
from detectors.types import Float64
from tests.detector_windows import WINDOW_MS, batch, slow_down, windows

_P50, _Z1 = CHANNELS.index("latency_p50_ms"), FAMILIES.index("z1")
_DAY = 1440  # windows


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS)


def _scores(ensemble: Ensemble, slow: list[tuple[int, int]], factor: float, length: int) -> Float64:
    """[windows, families] of the median latency of one service that is slower between some windows."""
    values, counts = windows(np.random.default_rng(5), length, requests=100.0)
    for begin, end in slow:
        slow_down(values, slice(begin, end), factor)
    states, found = ensemble.new_states(), []
    rows = states.rows(["series-0"])
    for t in range(length):
        one = batch(t, values[None, t], counts[None, t])
        found.append(ensemble.evidence(one, states, rows).z[0, _P50].copy())
    return np.array(found)


def test_the_hour_of_the_day_is_known_from_the_second_day_on(ensemble: Ensemble) -> None:
    """On the first day an hour's own beginning would stand for the hour, and swallow what begins with it."""
    days, hours = 3, np.exp(0.5 * np.sin(np.arange(24) / 24 * 2 * np.pi))
    values, counts = windows(np.random.default_rng(5), days * _DAY, requests=100.0)
    for h in range(days * 24):
        slow_down(values, slice(h * 60, (h + 1) * 60), float(hours[h % 24]))
    states, z, season = ensemble.new_states(), [], []
    rows = states.rows(["series-0"])
    for t in range(days * _DAY):
        z.append(ensemble.evidence(batch(t, values[None, t], counts[None, t]), states, rows).z[0, _P50, _Z1])
        season.append(float(states.data[rows[0], _P50 * WIDTH + LAST]))
    first = np.reshape(season[:_DAY], (24, 60))
    assert not np.any(first[:, :45]), "an hour of which less than most has been seen"
    assert np.count_nonzero(season[_DAY + 60 :]) > 0.95 * (2 * _DAY - 60)
    surprise = np.abs(z).reshape(days, _DAY).mean(axis=1)
    assert surprise[2] < 0.7 * surprise[0]


def test_an_outbreak_does_not_count_against_itself_but_against_the_next_one(ensemble: Ensemble) -> None:
    z = np.abs(_scores(ensemble, [(300, 310), (400, 410)], 20.0, 410)[:, _Z1])
    first, second = z[300:310], z[400:410]
    assert np.all(first[2:] == first[2:].max()), "the same gross change, the same score while it lasts"
    assert second.max() < 0.9 * first.max()
