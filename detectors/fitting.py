"""From scored normal windows and scored faults to a Calibration."""

from __future__ import annotations

import numpy as np

from detectors.calibration import Calibration
from detectors.types import Bool, Float64

DECLUSTER = 15  # windows that end a cluster of high scores
_LEVELS = 60


def clusters(high: Bool) -> int:
    """high: [T] -> number of runs that are at least DECLUSTER windows apart."""
    at = np.flatnonzero(high)
    return int(len(at) > 0) + int((np.diff(at) > DECLUSTER).sum())


def clusters_per_week(total: Float64, level: float, windows: int) -> float:
    """total: [T, n] of clean series, NaN where there was no window -> clusters above `level` per 10,080."""
    high = total > level
    return 10_080.0 * sum(clusters(high[:, j]) for j in range(high.shape[1])) / max(windows, 1)


def level_for_rate(total: Float64, per_week: float, windows: int) -> float:
    """The level that clean series exceed `per_week` times per 10,080 windows, in clusters; by bisection."""
    known = total[np.isfinite(total)]
    low, high = float(np.quantile(known, 0.5)), float(known.max())
    for _ in range(30):
        middle = (low + high) / 2
        if clusters_per_week(total, middle, windows) > per_week:
            low = middle
        else:
            high = middle
    return high


def tabulate(weights: Float64, daily: float, height: Float64) -> Calibration:
    """height: [T, n] above `daily` of clean series, shifted as in serving -> the whole calibration."""
    known = height[np.isfinite(height)]
    levels = np.linspace(0.0, max(float(known.max()), 0.5), _LEVELS)
    events = [max(clusters_per_week(height, level, known.size), 1e-6) for level in levels]
    survival = [max(float((known > level).mean()), 1e-9) for level in levels]
    keep = [i for i, rate in enumerate(events) if rate * known.size / 10_080 >= 3] or [0, 1]
    top = max(keep[-1] + 1, 8)
    return Calibration(
        weights=tuple(map(float, weights)),
        daily=daily,
        levels=tuple(map(float, levels[:top])),
        events_per_week=tuple(np.minimum.accumulate(events[:top]).tolist()),
        survival=tuple(np.minimum.accumulate(survival[:top]).tolist()),
    )


def shifted(total: Float64, daily: float) -> Float64:
    """total: [T, n] -> heights [T, n] as serving would give them, with every series' own shift."""
    from detectors import calibration

    windows, n = total.shape
    state = np.zeros((n, 16), np.float32)
    rows = np.arange(n)
    height = np.full(total.shape, np.nan)
    weights = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    inputs, now = np.empty((n, len(weights))), np.empty(n)
    for t in range(windows):
        here = np.isfinite(total[t])
        score = np.where(here, total[t], -1e9)
        calibration.advance(score, score, rows, state, 0, weights, daily, inputs, now)
        height[t, here] = now[here]
    return height
