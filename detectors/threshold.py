"""The user's false-alarm budget -> the height at which a window is an alarm, and the named decision."""

from __future__ import annotations

import numpy as np

from detectors.calibration import CALM, HOLD_WINDOWS, Calibration
from detectors.types import Bool, Float32, Float64, Int64

WEEK_MS = 604_800_000
LEARNING_WINDOWS = 60  # below this a series is still being learned and has to score higher
_LEARNING_EXTRA = 1.0
_HOLD_BELOW = 1.5  # how far below the threshold an alarm that has begun holds on
_MARGIN = 0.6  # share of the budget aimed at: other workloads may be noisier than those calibrated on


def height_for(calibration: Calibration, *, false_alarms_per_week: float, window_ms: int) -> float:
    """The height that clean series exceed `false_alarms_per_week` times a week, in clusters.

    The table is log-linear between its levels and goes on with its last slope beyond them.
    """
    windows_per_week = WEEK_MS / window_ms
    wanted = np.log(_MARGIN * false_alarms_per_week * 10_080.0 / windows_per_week)
    levels = np.array(calibration.levels)
    logs = np.log(np.maximum(calibration.events_per_week, 1e-9))
    logs = np.minimum.accumulate(logs)
    if wanted >= logs[0]:
        return float(levels[0])
    if wanted >= logs[-1]:
        return float(np.interp(-wanted, -logs, levels))
    slope = min((logs[-1] - logs[-6]) / (levels[-1] - levels[-6]), -0.05)
    return float(levels[-1] + (wanted - logs[-1]) / slope)


def decide(
    height: Float64, latest: Float64, seen: Int64, relearned: Bool, threshold: float, rows: Int64,
    state: Float32, at: int,
) -> tuple[Bool, list[str]]:  # fmt: skip
    """Heights -> alarms and their reasons; remembers in the states which alarms hold on.

    height: [m] combined; latest: [m], the height the newest window would have on its own.
    """
    bar = np.where(seen <= LEARNING_WINDOWS, threshold + _LEARNING_EXTRA, threshold)
    calm = state[rows, at + CALM]
    begins = height > bar
    holds = (calm > 0) & (height > bar - _HOLD_BELOW)
    alarm = begins | holds
    state[rows, at + CALM] = np.where(begins | holds, HOLD_WINDOWS, np.maximum(calm - 1, 0))
    quiet = np.where(seen <= LEARNING_WINDOWS, "learning", "normal")
    loud = np.where(latest > bar, "spike", "sustained")
    reason = np.where(alarm, loud, quiet)
    reason = np.where(relearned, "new_normal", reason)
    return alarm, reason.tolist()
