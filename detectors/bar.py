"""The bar: the height above which a window is an alarm, for a budget of false alarms.

Without numpy, which a command that only reads would wait for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

WEEK_MS = 604_800_000
LEARNING_WINDOWS = 60  # below this a series is still being learned and has to score higher
LEARNING_EXTRA = 1.0
HOLD_BELOW = 1.5  # how far below the bar an alarm that has begun holds on
HOLD_WINDOWS = 5
_MARGIN = 0.6  # share of the budget aimed at: other workloads may be noisier than those calibrated on
_LAST = 6  # levels that say how the table goes on


def height_for(
    levels: Sequence[float], events_per_week: Sequence[float], *, false_alarms_per_week: float, window_ms: int
) -> float:
    """The height that clean series exceed `false_alarms_per_week` times a week, in clusters.

    levels: ascending heights, at least two; events_per_week: how often each is exceeded, at windows of 60 s.
    The table is log-linear between its levels and goes on with its last slope beyond them.
    """
    wanted = math.log(_MARGIN * false_alarms_per_week * 10_080.0 / (WEEK_MS / window_ms))
    rarity: list[float] = []  # ascending
    for events in events_per_week:
        rarity.append(max(-math.log(max(events, 1e-9)), rarity[-1] if rarity else -math.inf))
    right = bisect_left(rarity, -wanted)
    if right == 0:
        return levels[0]
    if right == len(rarity):
        back = min(_LAST, len(levels))
        slope = max((rarity[-1] - rarity[-back]) / (levels[-1] - levels[-back]), 0.05)
        return levels[-1] + (-wanted - rarity[-1]) / slope
    step = (-wanted - rarity[right - 1]) / (rarity[right] - rarity[right - 1])
    return levels[right - 1] + step * (levels[right] - levels[right - 1])
