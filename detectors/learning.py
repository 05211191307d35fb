"""How the baselines of a series learn from a window once scored: one compiled pass over the channels."""

from __future__ import annotations

import numpy as np
from numba import njit

from detectors import counting
from detectors.channels import KIND, N_CHANNELS, N_SLOTS, NOISE_FLOOR, RATE, RATE_PRIOR
from detectors.layout import (
    COOLDOWN,
    H_HOT,
    H_IN_XX,
    H_IN_XY,
    H_OUT_XX,
    H_OUT_XY,
    H_RELEARN,
    H_SEEN,
    HOURS,
    LAST,
    LOCAL_LOG_VAR,
    LOCAL_MEAN,
    LOG_A,
    LOG_B,
    MU,
    N_HORIZONS,
    OUTBREAKS,
    POOL,
    PROFILE,
    PROFILE_SEEN,
    SEASON_XX,
    SEASON_XY,
    SEEN,
    WEEK,
    WEEK_LAST,
    WEEK_SEEN,
    WEEK_XX,
    WEEK_XY,
    WIDTH,
)
from detectors.numeric import clip
from detectors.types import STATISTIC_INDEX, Float32, Float64

RELEARN_WINDOWS = 120.0
_OUTBREAK = 4.0  # of |z3|
_CALM = 4.5  # mean of the four largest |z3| beyond which learning slows down
_I = STATISTIC_INDEX
_IN_STD, _OUT_STD = _I["input_tokens_log_std"], _I["output_tokens_log_std"]
_COV_IN, _COV_OUT = _I["latency_input_log_cov"], _I["latency_output_log_cov"]


@njit(cache=True)
def is_unused(s: Float32, n: float) -> bool:
    """A channel that the series has never had, in this window neither: all its scores are zero."""
    return bool(n <= 0 and s[SEEN] <= 0)


@njit(cache=True)
def usual_p(s: Float32, c: int) -> float:
    prior = RATE_PRIOR[c]
    return float((s[LOG_A] + 20.0 * prior) / (s[LOG_B] + 20.0))


@njit(cache=True)
def _gain(xy: float, xx: float) -> float:
    """How far a profile has proved itself, in [0, 1]: the slope of what came on what it said."""
    if xx <= 1e-12:
        return 0.0
    return float(min(max(xy / xx, 0.0), 1.0))


@njit(cache=True)
def of_hour(s: Float32) -> float:
    """What the hour of the day adds to the level of a channel, as far as believed."""
    return float(_gain(s[SEASON_XY], s[SEASON_XX]) * s[LAST])


@njit(cache=True)
def season(row: Float32, c: int) -> float:
    """What the time makes of a channel's level, as of the newest window, on the channel's own scale."""
    s = row[c * WIDTH : (c + 1) * WIDTH]
    return of_hour(s) + (of_week(row) if c == 0 else 0.0)


@njit(cache=True)
def of_week(row: Float32) -> float:
    """What the hour of the week adds to the traffic expected at that hour of the day, as far as believed."""
    return float(_gain(row[WEEK_XY], row[WEEK_XX]) * row[WEEK_LAST])


@njit(cache=True)
def look_up_week(row: Float32, hour: int, per_hour: float) -> None:
    """Put what is known of this hour of the week where `of_week` finds it, if most of it was seen before."""
    row[WEEK_LAST] = row[WEEK + hour] if row[WEEK_SEEN + hour] >= 0.6 * per_hour else 0.0


@njit(cache=True)
def pace(row: Float32, surprise: float, patience: float) -> float:
    """Speed of learning in [0, 1]; an anomaly of `patience` windows is learned as the new normal."""
    if row[H_RELEARN] > 0:
        row[H_RELEARN] -= 1.0
        return 1.0
    young = row[H_SEEN] < 30
    if surprise < _CALM or young:
        row[H_HOT] = max(0.0, row[H_HOT] - 2.0)
        return 1.0
    row[H_HOT] += 1.0
    if row[H_HOT] >= patience:
        row[H_HOT] = 0.0
        row[H_RELEARN] = RELEARN_WINDOWS
        for c in range(N_SLOTS):
            s = row[c * WIDTH : (c + 1) * WIDTH]
            if KIND[c] == RATE:
                s[LOG_A] *= 0.05
                s[LOG_B] *= 0.05
            else:
                s[SEEN] = min(s[SEEN], 15.0)
        return 1.0
    return 0.1


@njit(cache=True)
def _learn_slopes(x: Float64, n: Float64, state: Float32, rate: float) -> None:
    """Slopes of ln latency on the tokens from the covariances inside windows."""
    keep = 1.0 - rate
    if n[_COV_OUT] > 1 and n[_OUT_STD] > 0:
        w = min(n[_COV_OUT], 200.0)
        state[H_OUT_XY] = keep * state[H_OUT_XY] + w * clip(x[_COV_OUT], 4.0)
        state[H_OUT_XX] = keep * state[H_OUT_XX] + w * x[_OUT_STD] ** 2
    if n[_COV_IN] > 1 and n[_IN_STD] > 0:
        w = min(n[_COV_IN], 200.0)
        state[H_IN_XY] = keep * state[H_IN_XY] + w * clip(x[_COV_IN], 4.0)
        state[H_IN_XX] = keep * state[H_IN_XX] + w * x[_IN_STD] ** 2


@njit(cache=True)
def _learn_usual_sizes(s: Float32, out: Float64, rate: float) -> None:
    for h in range(N_HORIZONS):
        o = POOL + 3 * h + 2
        if s[POOL + 3 * h + 1] > 0:
            size = max(s[o], 0.3)
            square = (out[1 + h] ** 2) * size
            s[o] = s[o] + rate * (min(square, 9.0 * size) - s[o])


@njit(cache=True)
def _learn_share(s: Float32, c: int, x: float, n: float, out: Float64, rate: float, keep: float) -> None:
    if n <= 0:
        return
    p = usual_p(s, c)
    events = x * n
    room = 3.0 * np.sqrt(n * p * (1.0 - p)) + 1.0
    events = min(max(events, n * p - room), n * p + room)
    share = keep if s[SEEN] < 30 else keep * min(1.0, rate * 400.0)
    s[LOG_A] = (1.0 - rate) * s[LOG_A] + share * events
    s[LOG_B] = (1.0 - rate) * s[LOG_B] + share * n
    s[SEEN] += 1.0
    _learn_usual_sizes(s, out, max(rate, 1.0 / (s[SEEN] + 100.0)))


@njit(cache=True)
def _learn_mean(
    s: Float32, season: float, usable: bool, x: float, n: float, floor: float, out: Float64,
    rate: float, speed: float,
) -> None:  # fmt: skip
    """Advance one channel by a window; `speed` in [0, 1] slows learning while the series is anomalous.

    floor: ln of the least variance between windows; without one, trifles in a steady channel would count.
    """
    if n <= 0:
        return
    if s[SEEN] <= 0:
        s[MU], s[LOCAL_MEAN] = x, x
        s[LOCAL_LOG_VAR] = s[LOG_A]
        s[SEEN] = 1.0
        return
    a, b = np.exp(s[LOG_A]), np.exp(s[LOG_B]) / n
    r = x - s[MU] - season
    sigma = np.sqrt(a + b)
    weight = a / (a + b) + 0.1
    step = max(rate, 1.0 / (s[SEEN] + 1.0)) * speed
    bound = 2.5 if s[SEEN] > 20 else 6.0
    s[MU] += step * min(1.0, weight) * clip(r, bound * sigma)
    ratio = min(r * r / (a + b), 9.0) - 1.0
    pace = max(2.0 * rate, min(0.3, 3.0 / (s[SEEN] + 5.0))) * speed
    s[LOG_A] = max(clip(s[LOG_A] + pace * ratio * a / (a + b), 18.0), floor)
    s[LOG_B] = clip(s[LOG_B] + pace * ratio * b / (a + b), 18.0)
    spread = np.exp(s[LOCAL_LOG_VAR]) + 0.5 * b
    local = x - s[LOCAL_MEAN]
    quick = max(1.0 / 40.0, 1.0 / (s[SEEN] + 1.0))
    s[LOCAL_MEAN] += quick * max(speed, 0.5) * clip(local, 3.0 * np.sqrt(spread))
    s[LOCAL_LOG_VAR] += (
        max(0.01, min(0.3, 3.0 / (s[SEEN] + 5.0))) * speed * (min(local**2 / spread, 9.0) - 1.0)
    )
    s[LOCAL_LOG_VAR] = max(clip(s[LOCAL_LOG_VAR], 18.0), floor)
    if usable:
        whole = x - s[MU]
        raw = s[LAST]  # the profile of the hour as it stands, before the gain
        s[SEASON_XY] = (1.0 - rate) * s[SEASON_XY] + rate * raw * clip(whole, 3.0 * sigma + abs(raw))
        s[SEASON_XX] = (1.0 - rate) * s[SEASON_XX] + rate * raw * raw
    s[SEEN] += 1.0
    _learn_usual_sizes(s, out, max(rate, 1.0 / (s[SEEN] + 100.0)) * speed)


@njit(cache=True)
def _learn_week(row: Float32, left: float, hour: int, day: float, speed: float, per_hour: float) -> None:
    """Learn what this hour of the week adds to that of the day, and whether that comes true.

    left: what the level and the hour of the day leave of the window's traffic.
    One week is believed half, two weeks two thirds; later ones are forgotten over about three.
    """
    s = row[:WIDTH]
    if row[H_SEEN] <= 30:
        return
    square = np.exp(s[LOG_A]) + np.exp(s[LOG_B])
    sigma = np.sqrt(square)
    raw = row[WEEK_LAST]
    if raw != 0.0:
        rate = day / 7.0
        proof = raw * clip(left, 3.0 * sigma + abs(raw))
        if row[WEEK_XX] == 0.0:  # two hours of noise to begin with
            row[WEEK_XX] = rate * 2.0 * per_hour * square
        row[WEEK_XY] = (1.0 - rate) * row[WEEK_XY] + rate * proof
        row[WEEK_XX] = (1.0 - rate) * row[WEEK_XX] + rate * raw * raw
    slot = row[WEEK + hour]
    step = max(1.0 / (3.0 * per_hour), 1.0 / (row[WEEK_SEEN + hour] + per_hour + 1.0)) * speed
    row[WEEK + hour] += step * clip(left - slot, 3.0 * sigma + abs(slot))
    row[WEEK_SEEN + hour] += speed


@njit(cache=True)
def _discount(s: Float32, out: Float64, rate: float) -> None:
    """Shrink the scores of a channel by how often it broke out in the last days, then count this window."""
    trust = 1.0 / np.sqrt(1.0 + 0.5 * s[OUTBREAKS])
    high = abs(out[1]) >= _OUTBREAK
    for f in range(len(out)):
        out[f] *= trust
    s[OUTBREAKS] *= 1.0 - 0.5 * rate
    if not high:
        s[COOLDOWN] = max(0.0, s[COOLDOWN] - 1.0)
        return
    if s[COOLDOWN] == 0.0:
        s[OUTBREAKS] += 1.0
    s[COOLDOWN] = 15.0


@njit(cache=True)
def learn(
    x: Float64,
    n: Float64,
    z: Float64,
    extra: Float64,
    count: float,
    row: Float32,
    hour: int,
    alphas: Float64,
    rate: float,
    speed: float,
    per_hour: float,
) -> None:
    day, week_hour = rate, hour
    hour %= HOURS
    if row[H_RELEARN] > 0:
        rate = max(rate, 1.0 / 60.0)
    ripe = row[PROFILE_SEEN + hour] >= 5
    season_rate = max(rate * 24.0 / 3.0, 1.0 / (row[PROFILE_SEEN + hour] + 1.0)) * speed
    for c in range(N_SLOTS):
        s = row[c * WIDTH : (c + 1) * WIDTH]
        if is_unused(s, n[c]):
            continue
        if KIND[c] == RATE:
            _learn_share(s, c, x[c], n[c], z[c], rate, speed)
            _discount(s, z[c], day)
            continue
        usual = of_hour(s)
        if c == 0:
            left = x[0] - s[MU] - usual
            usual += of_week(row)
            _learn_week(row, left, week_hour, day, speed, per_hour)
        _learn_mean(s, usual, ripe and c < N_CHANNELS, x[c], n[c], NOISE_FLOOR[c], z[c], rate, speed)
        if c < N_CHANNELS and n[c] > 0 and row[H_SEEN] > 30:
            at = PROFILE + hour * N_CHANNELS + c
            sigma = np.sqrt(np.exp(s[LOG_A]) + np.exp(s[LOG_B]) / n[c])
            r = x[c] - s[MU]
            row[at] += season_rate * clip(r - row[at], 3.0 * sigma + abs(row[at]))
        _discount(s, z[c], day)
    if row[H_SEEN] > 30:
        row[PROFILE_SEEN + hour] += speed
    _learn_slopes(x, n, row, rate)
    counting.learn(count, extra, row, alphas, rate, speed)
