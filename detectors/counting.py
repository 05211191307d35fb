"""How usual the number of requests is: counts against running rates, silences against earlier silences.

Counts are compared by their square roots (Anscombe 1948) and divided by their usual deviation, so bursty
series are given more room. A silence is as odd as it is rare that one of this series reached that length, and
that one began at so high a rate.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detectors.layout import (
    EPISODE_LEVELS,
    EPISODE_PEAKS,
    EPISODES,
    EXPOSED,
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
    N_EPISODE_KINDS,
    N_HORIZONS,
    N_RECENT,
    N_RECENT_SUMS,
    RECENT,
    RUN_BUCKETS,
    RUNS,
    SIDES,
    USUAL,
    Z_CLIP,
)
from detectors.numeric import clip
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
    "sum_3_vs_before",
    "sum_10_vs_before",
    "sum_10_vs_long_before",
    "sum_30_vs_long_before",
    "raw_10_vs_before",
    "raw_30_vs_long_before",
    "change_10",
    "change_30",
    "loss_rarity_10",
    "flood_rarity_10",
    "loss_rarity_30",
    "flood_rarity_30",
)
_EPISODE_BEGINS, _EPISODE_ENDS = 2.0, 1.4  # of a raw recent sum
_SUMMED = np.array([3, 10, 10, 30])  # windows of each recent sum
_BEFORE = np.array([0, 0, 1, 1])  # the usual rate that it is held against
_LAG = np.array([10, 30])  # newest windows that a usual rate does not know
_MEMORY = np.array([60.0, 120.0])  # windows
_AT_SUMS, _AT_EPISODES = 15, 23  # in COUNT_FEATURES


@njit(cache=True)
def compare(count: float, usual_hour: float, row: Float32, out: Float64) -> None:
    for k in range(5):
        rate = row[H_RATE + k]
        z = 2.0 * (np.sqrt(count + 0.375) - np.sqrt(rate + 0.375))
        out[k] = clip(z / np.sqrt(max(row[H_DISPERSION + k], 1.0)), Z_CLIP)
    z = 2.0 * (np.sqrt(count + 0.375) - np.sqrt(max(usual_hour, 0.0) + 0.375))
    out[5] = clip(z / np.sqrt(max(row[H_DISPERSION + 4], 1.0)), Z_CLIP)
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
    _compare_sums(count, row, out)
    _compare_episodes(row, out)


@njit(cache=True)
def _compare_sums(count: float, row: Float32, out: Float64) -> None:
    """The newest windows together against the rate before them, each side by its own usual deviation."""
    at = int(row[RECENT + N_RECENT])
    total, done = count, 1
    out[_AT_SUMS : _AT_SUMS + N_RECENT_SUMS + 4] = 0.0
    if row[H_SEEN] < 20:
        return
    for k in range(N_RECENT_SUMS):
        length = int(min(_SUMMED[k], row[H_SEEN] + 1))
        while done < length:
            total += row[RECENT + (at - done) % N_RECENT]
            done += 1
        usual = length * row[USUAL + _BEFORE[k]]
        raw = 2.0 * (np.sqrt(total + 0.375) - np.sqrt(usual + 0.375))
        side = row[SIDES + k] if raw < 0 else row[SIDES + N_RECENT_SUMS + k]
        out[_AT_SUMS + k] = clip(raw / np.sqrt(max(side, 1.0)), Z_CLIP)
        if k == 1 or k == 3:
            out[_AT_SUMS + 4 + k // 2] = clip(raw, 4 * Z_CLIP)
            out[_AT_SUMS + 6 + k // 2] = np.log((total + 0.5) / (usual + 0.5))


@njit(cache=True)
def _compare_episodes(row: Float32, out: Float64) -> None:
    """ln(windows per episode as far out as this one), 0 while there is none; level k is 2 * 2 ** (k / 2)."""
    for e in range(N_EPISODE_KINDS):
        raw = out[_AT_SUMS + 4 + e // 2]
        size = -raw if e % 2 == 0 else raw
        out[_AT_EPISODES + e] = 0.0
        if size < _EPISODE_BEGINS:
            continue
        place = min(2.0 * np.log2(size / _EPISODE_BEGINS), EPISODE_LEVELS - 1.001)
        k = int(place)
        peak = row[EPISODE_PEAKS + e]
        first = EPISODES + e * EPISODE_LEVELS
        at = max(row[first + k] - (peak > k), 0.0)
        after = max(row[first + k + 1] - (peak > k + 1), 0.0)
        reached = np.exp((1 - place + k) * np.log(at + 0.3) + (place - k) * np.log(after + 0.3))
        out[_AT_EPISODES + e] = np.log(row[EXPOSED] + 1.0) - np.log(reached)


@njit(cache=True)
def _learn_episodes(row: Float32, out: Float64, rate: float) -> None:
    for k in range(N_EPISODE_KINDS * EPISODE_LEVELS):
        row[EPISODES + k] *= 1.0 - rate / 7.0
    row[EXPOSED] = row[EXPOSED] * (1.0 - rate / 7.0) + 1.0
    for e in range(N_EPISODE_KINDS):
        raw = out[_AT_SUMS + 4 + e // 2]
        size = -raw if e % 2 == 0 else raw
        if size < _EPISODE_ENDS:
            row[EPISODE_PEAKS + e] = 0.0
            continue
        while row[EPISODE_PEAKS + e] < EPISODE_LEVELS and size >= _EPISODE_BEGINS * 2.0 ** (
            row[EPISODE_PEAKS + e] / 2.0
        ):
            row[EPISODES + e * EPISODE_LEVELS + int(row[EPISODE_PEAKS + e])] += 1.0
            row[EPISODE_PEAKS + e] += 1.0


@njit(cache=True)
def _learn_sums(count: float, out: Float64, row: Float32, rate: float, speed: float) -> None:
    at = int(row[RECENT + N_RECENT])
    seen = row[H_SEEN]
    slow = max(rate, 1.0 / (seen + 20.0)) * speed
    for k in range(N_RECENT_SUMS):
        z = out[_AT_SUMS + k]
        if z == 0.0:
            continue
        place = SIDES + k if z < 0 else SIDES + N_RECENT_SUMS + k
        size = max(row[place], 1.0)
        row[place] += slow * (min(z * z, 9.0) * size - row[place])
    calm = 1.0 if max(abs(out[_AT_SUMS + 1]), abs(out[_AT_SUMS + 3])) < 4.0 else 0.2
    for b in range(2):
        known = seen - _LAG[b]
        if seen < _LAG[b]:  # too young: what there is
            row[USUAL + b] += (count - row[USUAL + b]) / (seen + 1.0)
        else:
            left = row[RECENT + (at - _LAG[b]) % N_RECENT]
            pace = max(1.0 / _MEMORY[b], 1.0 / (known + 10.0)) * speed * calm
            row[USUAL + b] += pace * (left - row[USUAL + b])
    row[RECENT + at] = count
    row[RECENT + N_RECENT] = (at + 1) % N_RECENT


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
    _learn_sums(count, out, row, rate, speed)
    _learn_episodes(row, out, rate)
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
