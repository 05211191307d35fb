"""The user's false-alarm budget -> the height at which a window is an alarm, and the named decision."""

from __future__ import annotations

import numpy as np

from detectors import bar
from detectors.calibration import CALM, Calibration
from detectors.types import Bool, Float32, Float64, Int64


def height_for(calibration: Calibration, *, false_alarms_per_week: float, window_ms: int) -> float:
    """The height that clean series exceed `false_alarms_per_week` times a week, in clusters."""
    return bar.height_for(
        calibration.levels,
        calibration.events_per_week,
        false_alarms_per_week=false_alarms_per_week,
        window_ms=window_ms,
    )


def decide(
    height: Float64, latest: Float64, seen: Int64, relearned: Bool, threshold: float, rows: Int64,
    state: Float32, at: int,
) -> tuple[Bool, list[str]]:  # fmt: skip
    """Heights -> alarms and their reasons; remembers in the states which alarms hold on.

    height: [m] combined; latest: [m], the height the newest window would have on its own.
    """
    is_new = seen <= bar.LEARNING_WINDOWS
    needed = np.where(is_new, threshold + bar.LEARNING_EXTRA, threshold)
    calm = state[rows, at + CALM]
    begins = height > needed
    holds = (calm > 0) & (height > needed - bar.HOLD_BELOW)
    alarm = begins | holds
    state[rows, at + CALM] = np.where(begins | holds, bar.HOLD_WINDOWS, np.maximum(calm - 1, 0))
    quiet = np.where(is_new, "learning", "normal")
    loud = np.where(latest > needed, "spike", "sustained")
    reason = np.where(alarm, loud, quiet)
    reason = np.where(relearned, "new_normal", reason)
    return alarm, reason.tolist()
