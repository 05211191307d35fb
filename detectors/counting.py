"""How usual the number of requests is: counts against running rates, silences against earlier silences.

Counts are compared by their square roots (Anscombe 1948) and divided by their usual deviation, so bursty
series are given more room. A silence is as odd as it is rare that one of this series reached that length, and
that one began at so high a rate.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detectors.layout import (
    H_ACTIVE,
    H_BUSY,
    H_DISPERSION,
    H_RATE,
    H_SEEN,
    H_START_LEVEL,
    H_ZERO_RUN,
    H_ZERO_SHARE,
    LEVEL_BUCKETS,
    LEVELS,
    N_HORIZONS,
    RUN_BUCKETS,
    RUNS,
    Z_CLIP,
)
from detectors.types import Float32, Float64

COUNT_FEATURES: tuple[str, ...] = (
    "count_vs_3",
    "count_vs_10",
    "count_vs_40",
    "count_vs_2h",
    "count_vs_day",
    "count_vs_hour",
    "silent_windows",
    "silence_rarity",
    "silence_rarity_at_level",
    "silent_share",
    "missed_requests",
    "log_count",
    "log_seen",
    "log_usual_rate",
    "busy_run",
)


@njit(cache=True)
def _clip(x: float, bound: float) -> float:
    return float(min(max(x, -bound), bound))


@njit(cache=True)
def compare(count: float, usual_hour: float, row: Float32, out: Float64) -> None:
    for k in range(5):
        rate = row[H_RATE + k]
        z = 2.0 * (np.sqrt(count + 0.375) - np.sqrt(rate + 0.375))
        out[k] = _clip(z / np.sqrt(max(row[H_DISPERSION + k], 1.0)), Z_CLIP)
    z = 2.0 * (np.sqrt(count + 0.375) - np.sqrt(max(usual_hour, 0.0) + 0.375))
    out[5] = _clip(z / np.sqrt(max(row[H_DISPERSION + 4], 1.0)), Z_CLIP)
    run = row[H_ZERO_RUN] + 1.0 if count == 0 else 0.0
    out[6] = np.log1p(run)
    out[7], out[8], out[10] = 0.0, 0.0, 0.0
    if run > 0:
        bucket = min(int(np.log2(run)), RUN_BUCKETS - 1)
        part = np.log2(run) - bucket
        at = max(row[RUNS + bucket] - (row[H_ZERO_RUN] >= 2.0**bucket), 0.0)
        after = row[RUNS + min(bucket + 1, RUN_BUCKETS - 1)]
        reached = np.exp((1 - part) * np.log(at + 0.3) + part * np.log(after + 0.3))
        out[7] = np.log(row[H_ACTIVE] + 1.0) - np.log(reached)
        going_on = row[H_ZERO_RUN] > 0
        level = int(row[H_START_LEVEL]) if going_on else _level(row[H_RATE + 1])
        silent = max(row[LEVELS + LEVEL_BUCKETS + level] - going_on, 0.0)
        out[8] = np.log(row[LEVELS + level] + 2.0) - np.log(silent + 0.5)
        out[10] = np.log1p(run * row[H_RATE + 3])
    out[9] = row[H_ZERO_SHARE]
    out[11] = np.log1p(count)
    out[12] = np.log1p(row[H_SEEN])
    out[13] = np.log1p(row[H_RATE + 4])
    out[14] = np.log1p(row[H_BUSY])


@njit(cache=True)
def _level(rate: float) -> int:
    return min(max(int(2.0 * np.log2(rate + 1.0)), 0), LEVEL_BUCKETS - 1)


@njit(cache=True)
def learn(count: float, out: Float64, row: Float32, alphas: Float64, rate: float, speed: float) -> None:
    seen = row[H_SEEN]
    day = row[H_RATE + 4]
    for k in range(5):
        alpha = alphas[k] if k < N_HORIZONS else rate * speed
        alpha = max(alpha, speed / (seen + 1.0))
        z = out[k]
        size = max(row[H_DISPERSION + k], 1.0)
        slow = max(rate, 1.0 / (seen + 20.0)) * speed
        row[H_DISPERSION + k] += slow * (min(z * z, 9.0) * size - row[H_DISPERSION + k])
        bounded = count if k < 4 else min(count, 4.0 * day + 20.0) if seen > 60 else count
        row[H_RATE + k] += alpha * (bounded - row[H_RATE + k])
    zero = 1.0 if count == 0 else 0.0
    row[H_ZERO_SHARE] += max(rate * speed, speed / (seen + 2.0)) * (zero - row[H_ZERO_SHARE])
    row[H_ACTIVE] *= 1.0 - rate / 7.0
    for k in range(RUN_BUCKETS):
        row[RUNS + k] *= 1.0 - rate / 7.0
    for k in range(2 * LEVEL_BUCKETS):
        row[LEVELS + k] *= 1.0 - rate / 7.0
    run = row[H_ZERO_RUN]
    if run == 0:
        level = _level(row[H_RATE + 1])
        row[H_START_LEVEL] = level
        row[LEVELS + level] += 1.0
        row[LEVELS + LEVEL_BUCKETS + level] += zero
    if count == 0:
        run += 1.0
        if run == 2.0 ** int(np.log2(run)) and int(np.log2(run)) < RUN_BUCKETS:
            row[RUNS + int(np.log2(run))] += 1.0
        row[H_ZERO_RUN] = run
        row[H_BUSY] = 0.0
    else:
        row[H_ZERO_RUN] = 0.0
        row[H_ACTIVE] += 1.0
        row[H_BUSY] += 1.0
    row[H_SEEN] = seen + 1.0
