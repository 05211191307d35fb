"""Evidence of the detectors over time -> one combined score, shifted so that all series mean the same by it.

The shift of a series follows its own clusters of high scores: a cluster raises it by a step, every window
lowers it by a step times the wanted rate of clusters (stochastic approximation of a quantile, Robbins and
Monro 1951, on declustered exceedances). It starts at 0, the calibration of the training, and one long
incident moves it by one step only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numba import njit

from detectors.types import Float32, Float64, Int64

(SEEN, EW3, EW10, EW30, LSTM_EW3, SHIFT, SINCE_HIGH, CALM) = range(8)
# Columns of the alarm part of a state row; CALM counts down the windows for which an alarm may hold on.
INPUTS: tuple[str, ...] = ("bias", "gbdt", "gbdt_3", "gbdt_10", "gbdt_30", "lstm", "lstm_3")
_STEP, _SHIFT_LOW, _SHIFT_HIGH = 0.05, -1.5, 3.0
_DECLUSTER = 30.0  # windows
_LOGIT_CLIP = 9.0


@dataclass(frozen=True)
class Calibration:
    """How evidence is weighed, and how often clean series score high: all learned in training."""

    weights: tuple[float, ...]  # of INPUTS
    daily: float  # combined score that clean series reach about once in 1440 windows, in clusters
    levels: tuple[float, ...]  # ascending scores above `daily`
    events_per_week: tuple[float, ...]  # clusters above each level in clean series, at 60 s windows
    survival: tuple[float, ...]  # share of clean windows above each level

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """Raises KeyError or TypeError for another shape."""
        sizes = {len(data[k]) for k in ("levels", "events_per_week", "survival")}
        if len(data["weights"]) != len(INPUTS) or len(sizes) != 1:
            raise TypeError("a calibration of another shape")
        lists = {k: tuple(map(float, data[k])) for k in ("weights", "levels", "events_per_week", "survival")}
        return cls(daily=float(data["daily"]), **lists)

    def tail_probability(self, height: Float64) -> Float64:
        """height: [m] score above `daily` -> chance that a normal window is as high, in (0, 1]."""
        levels, logs = np.array(self.levels), np.log(np.maximum(self.survival, 1e-9))
        slope = min((logs[-1] - logs[-6]) / max(levels[-1] - levels[-6], 1e-9), -0.05)
        inside = np.interp(height, levels, logs)
        beyond = np.where(height > levels[-1], logs[-1] + slope * (height - levels[-1]), inside)
        return np.clip(np.exp(beyond), 1e-12, 1.0)


@njit(cache=True)
def _ew(old: float, new: float, alpha: float, seen: float) -> float:
    return old + max(alpha, 1.0 / (seen + 1.0)) * (new - old)


@njit(cache=True, nogil=True)
def advance(
    logit: Float64, odds: Float64, rows: Int64, state: Float32, at: int, weights: Float64, daily: float,
    inputs: Float64, height: Float64,
) -> None:  # fmt: skip
    """Combine the evidence of one window per row and advance the alarm part (column `at` on) of the states.

    logit: [m], log-odds of the GBDT; odds: [m], of the LSTM. Out: inputs [m, len(INPUTS)] and
    height [m], the combined score above the series' own usual level.
    """
    for i in range(len(rows)):
        s = state[rows[i], at:]
        seen = s[SEEN]
        g = min(max(logit[i], -_LOGIT_CLIP), _LOGIT_CLIP)
        s[EW3] = _ew(s[EW3], g, 0.4, seen)
        s[EW10] = _ew(s[EW10], g, 0.1, seen)
        s[EW30] = _ew(s[EW30], g, 1.0 / 30.0, seen)
        z = min(max(odds[i], -_LOGIT_CLIP), _LOGIT_CLIP)
        s[LSTM_EW3] = _ew(s[LSTM_EW3], z, 0.4, seen)
        inputs[i, 0], inputs[i, 1], inputs[i, 2], inputs[i, 3] = 1.0, g, s[EW3], s[EW10]
        inputs[i, 4], inputs[i, 5], inputs[i, 6] = s[EW30], z, s[LSTM_EW3]
        total = 0.0
        for k in range(len(weights)):
            total += weights[k] * inputs[i, k]
        h = total - daily - s[SHIFT]
        height[i] = h
        if h > 0.0:
            if s[SINCE_HIGH] >= _DECLUSTER or seen < _DECLUSTER:
                s[SHIFT] = min(s[SHIFT] + _STEP, _SHIFT_HIGH)
            s[SINCE_HIGH] = 0.0
        else:
            s[SINCE_HIGH] = min(s[SINCE_HIGH] + 1.0, 1e6)
        s[SHIFT] = max(s[SHIFT] - _STEP / 1440.0, _SHIFT_LOW)
        s[SEEN] = seen + 1.0
