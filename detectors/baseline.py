"""Running baselines per series and the scores of a window against them: one compiled pass over the rows.

Every channel keeps a robust mean over about a day, a time-of-day profile that is used as far as it has
proved itself, and a model of its noise: the variance of a window's value is taken to be a + b / n, n being
the records it rests on, so that a window of 3 records says less than one of 300. `a` and `b` follow the
gradient of the Gaussian likelihood in their logarithms, with clipped residuals (Huber 1964). Shares are
judged by the arcsine of their pooled counts (Anscombe 1948), counts by the square root of theirs.

Evidence is pooled over horizons of 3, 10, 40 windows and two hours with weights 1 / variance, and divided
by its own usual size, so that a series whose noise is correlated in time does not look anomalous for it.
A channel that breaks out again and again is believed less each time.

Nothing here depends on a trained model: states survive every change of the models.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detectors import counting
from detectors.channels import (
    COUNT,
    KIND,
    LOG,
    N_CHANNELS,
    N_SLOTS,
    NOISE_FLOOR,
    NOISE_PRIOR,
    RATE,
    RATE_PRIOR,
    RATIOS,
)
from detectors.layout import (
    COOLDOWN,
    DELTA,
    H_DISPERSION,
    H_HOT,
    H_IN_XX,
    H_IN_XY,
    H_OUT_XX,
    H_OUT_XY,
    H_RELEARN,
    H_SEEN,
    LAST,
    LOCAL_LOG_VAR,
    LOCAL_MEAN,
    LOCAL_POOL,
    LOG_A,
    LOG_B,
    MU,
    N_HORIZONS,
    N_RECENT_SUMS,
    OUTBREAKS,
    POOL,
    PROFILE,
    PROFILE_SEEN,
    SEASON_XX,
    SEASON_XY,
    SEEN,
    SIDES,
    WIDTH,
    Z_CLIP,
)
from detectors.types import STATISTIC_INDEX, Float32, Float64, Int64

FAMILIES: tuple[str, ...] = ("z1", "z3", "z10", "z40", "z2h", "local", "local3", "size")
_ALPHA = np.array([1 - np.exp(-1 / 2.0), 1 / 10, 1 / 40, 1 / 120])
_RATIO_UPPER = np.array([upper for upper, _ in RATIOS])
_RATIO_LOWER = np.array([lower for _, lower in RATIOS])
_I = STATISTIC_INDEX
_LAT, _IN, _OUT = _I["latency_log_mean"], _I["input_tokens_log_mean"], _I["output_tokens_log_mean"]
_IN_STD, _OUT_STD = _I["input_tokens_log_std"], _I["output_tokens_log_std"]
_COV_IN, _COV_OUT = _I["latency_input_log_cov"], _I["latency_output_log_cov"]
_COST, _IN_MEAN, _OUT_MEAN = _I["cost_usd_sum"], _I["input_tokens_mean"], _I["output_tokens_mean"]
_N_STATISTICS = len(STATISTIC_INDEX)
RELEARN_WINDOWS = 120.0
POOL_CLIP = 4.0
_OUTBREAK = 4.0  # of |z3|
_CALM = 4.5  # mean of the four largest |z3| beyond which learning slows down


def horizons(window_ms: int) -> Float64:
    """Window length -> [two hours, a day, patience before a new normal] in windows."""
    per_hour = 3_600_000 / window_ms
    return np.array(
        [max(20.0, 2 * per_hour), min(max(24 * per_hour, 240.0), 2880.0), max(60.0, 8 * per_hour)]
    )


@njit(cache=True)
def _clip(x: float, bound: float) -> float:
    return float(min(max(x, -bound), bound))


@njit(cache=True)
def _is_unused(s: Float32, n: float) -> bool:
    """A channel that the series has never had, in this window neither: all its scores are zero."""
    return bool(n <= 0 and s[SEEN] <= 0)


@njit(cache=True)
def _share_z(events: float, trials: float, p: float) -> float:
    scale = trials + 0.75
    seen = np.arcsin(np.sqrt(min(max((events + 0.375) / scale, 0.0), 1.0)))
    usual = np.arcsin(np.sqrt(min(max((trials * p + 0.375) / scale, 0.0), 1.0)))
    return float(2.0 * np.sqrt(trials + 0.5) * (seen - usual))


@njit(cache=True)
def _channel_values(values: Float64, counts: Float64, state: Float32, x: Float64, n: Float64) -> None:
    """One window -> x, n [N_CHANNELS]: transformed values and the records they rest on (0 = missing)."""
    for c in range(_N_STATISTICS):
        v = values[c]
        n[c] = 0.0
        x[c] = 0.0
        if KIND[c] == COUNT:
            x[c], n[c] = np.log1p(v), 1.0
        elif counts[c] > 0 and np.isfinite(v):
            if KIND[c] == LOG:
                x[c] = np.log(max(v, 0.0) + 1e-3)
            else:
                x[c] = v
            n[c] = counts[c]
    given = _N_STATISTICS
    x[given] = n[given] = 0.0
    if n[_LAT] > 0:
        slope_out = state[H_OUT_XY] / (state[H_OUT_XX] + 5.0)
        slope_in = state[H_IN_XY] / (state[H_IN_XX] + 5.0)
        left = x[_LAT]
        if n[_OUT] > 0:
            left -= slope_out * (x[_OUT] - state[_OUT * WIDTH + MU])
        if n[_IN] > 0:
            left -= slope_in * (x[_IN] - state[_IN * WIDTH + MU])
        x[given], n[given] = left, n[_LAT]
    for k in range(len(_RATIO_UPPER)):
        upper, lower = _RATIO_UPPER[k], _RATIO_LOWER[k]
        c = given + 1 + k
        x[c] = n[c] = 0.0
        if n[upper] > 0 and n[lower] > 0:
            x[c], n[c] = x[upper] - x[lower], n[lower]
    price = N_CHANNELS - 1
    x[price] = n[price] = 0.0
    if n[_COST] > 0 and values[_COST] > 0:
        tokens = 0.0
        if n[_IN_MEAN] > 0:
            tokens += values[_IN_MEAN]
        if n[_OUT_MEAN] > 0:
            tokens += 3.0 * values[_OUT_MEAN]
        x[price], n[price] = np.log(values[_COST] / n[_COST] / (tokens + 1.0)), n[_COST]


@njit(cache=True)
def _learn_slopes(x: Float64, n: Float64, state: Float32, rate: float) -> None:
    """Slopes of ln latency on the tokens from the covariances inside windows."""
    keep = 1.0 - rate
    if n[_COV_OUT] > 1 and n[_OUT_STD] > 0:
        w = min(n[_COV_OUT], 200.0)
        state[H_OUT_XY] = keep * state[H_OUT_XY] + w * _clip(x[_COV_OUT], 4.0)
        state[H_OUT_XX] = keep * state[H_OUT_XX] + w * x[_OUT_STD] ** 2
    if n[_COV_IN] > 1 and n[_IN_STD] > 0:
        w = min(n[_COV_IN], 200.0)
        state[H_IN_XY] = keep * state[H_IN_XY] + w * _clip(x[_COV_IN], 4.0)
        state[H_IN_XX] = keep * state[H_IN_XX] + w * x[_IN_STD] ** 2


@njit(cache=True)
def _pool(s: Float32, evidence: float, weight: float, out: Float64, alphas: Float64) -> None:
    """Pool one window's evidence over the horizons; out[1..4] = z of the pooled evidence."""
    for h in range(N_HORIZONS):
        o = POOL + 3 * h
        keep = 1.0 - alphas[h]
        s[o] = keep * s[o] + evidence
        s[o + 1] = keep * keep * s[o + 1] + weight
        z = s[o] / np.sqrt(s[o + 1] + 1e-12) if s[o + 1] > 0 else 0.0
        out[1 + h] = _clip(z / np.sqrt(max(s[o + 2], 0.3)), Z_CLIP)


@njit(cache=True)
def _pool_share(s: Float32, events: float, trials: float, p: float, out: Float64, alphas: Float64) -> None:
    for h in range(N_HORIZONS):
        o = POOL + 3 * h
        keep = 1.0 - alphas[h]
        s[o] = keep * s[o] + events
        s[o + 1] = keep * s[o + 1] + trials
        out[1 + h] = _clip(_share_z(s[o], s[o + 1], p) / np.sqrt(max(s[o + 2], 0.3)), Z_CLIP)


@njit(cache=True)
def _usual_p(s: Float32, c: int) -> float:
    prior = RATE_PRIOR[c]
    return float((s[LOG_A] + 20.0 * prior) / (s[LOG_B] + 20.0))


@njit(cache=True)
def _score_share(s: Float32, c: int, x: float, n: float, out: Float64, alphas: Float64) -> None:
    p = _usual_p(s, c)
    z = _share_z(x * n, n, p) if n > 0 else 0.0
    out[0] = _clip(z, Z_CLIP)
    _pool_share(s, x * n, n, p, out, alphas)
    out[5], out[6] = 0.0, 0.0
    out[7] = (s[POOL] - p * s[POOL + 1]) / (s[POOL + 1] + 1.0)


@njit(cache=True)
def _score_mean(s: Float32, season: float, x: float, n: float, out: Float64, alphas: Float64) -> None:
    if n <= 0 or s[SEEN] <= 0:
        out[0], out[5] = 0.0, 0.0
        _pool(s, 0.0, 0.0, out, alphas)
        out[6] = _clip(2.0 * s[LOCAL_POOL], Z_CLIP)
        s[DELTA] *= 0.9
        out[7] = s[DELTA]
        return
    spread = np.exp(s[LOG_A]) + np.exp(s[LOG_B]) / n
    spread *= 1.0 + 1.0 / s[SEEN]
    r = x - s[MU] - season
    out[0] = _clip(r / np.sqrt(spread), Z_CLIP)
    bounded = _clip(out[0], POOL_CLIP)  # one wild window is a spike, not a change of level
    _pool(s, bounded / np.sqrt(spread), 1.0 / spread, out, alphas)
    s[DELTA] += 0.4 * (_clip(r, 3.0) - s[DELTA])
    out[7] = s[DELTA]
    floor = np.exp(s[LOG_B]) / n
    local = (x - s[LOCAL_MEAN]) / np.sqrt(np.exp(s[LOCAL_LOG_VAR]) + 0.5 * floor)
    out[5] = _clip(local, Z_CLIP)
    s[LOCAL_POOL] = 0.6 * s[LOCAL_POOL] + 0.4 * _clip(out[5], POOL_CLIP)
    out[6] = _clip(2.0 * s[LOCAL_POOL], Z_CLIP)


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
    p = _usual_p(s, c)
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
    s[MU] += step * min(1.0, weight) * _clip(r, bound * sigma)
    ratio = min(r * r / (a + b), 9.0) - 1.0
    pace = max(2.0 * rate, min(0.3, 3.0 / (s[SEEN] + 5.0))) * speed
    s[LOG_A] = max(_clip(s[LOG_A] + pace * ratio * a / (a + b), 18.0), floor)
    s[LOG_B] = _clip(s[LOG_B] + pace * ratio * b / (a + b), 18.0)
    spread = np.exp(s[LOCAL_LOG_VAR]) + 0.5 * b
    local = x - s[LOCAL_MEAN]
    quick = max(1.0 / 40.0, 1.0 / (s[SEEN] + 1.0))
    s[LOCAL_MEAN] += quick * max(speed, 0.5) * _clip(local, 3.0 * np.sqrt(spread))
    s[LOCAL_LOG_VAR] += (
        max(0.01, min(0.3, 3.0 / (s[SEEN] + 5.0))) * speed * (min(local**2 / spread, 9.0) - 1.0)
    )
    s[LOCAL_LOG_VAR] = max(_clip(s[LOCAL_LOG_VAR], 18.0), floor)
    if usable:
        whole = x - s[MU]
        raw = s[LAST]  # the profile of the hour as it stands, before the gain
        s[SEASON_XY] = (1.0 - rate) * s[SEASON_XY] + rate * raw * _clip(whole, 3.0 * sigma + abs(raw))
        s[SEASON_XX] = (1.0 - rate) * s[SEASON_XX] + rate * raw * raw
    s[SEEN] += 1.0
    _learn_usual_sizes(s, out, max(rate, 1.0 / (s[SEEN] + 100.0)) * speed)


@njit(cache=True)
def _gain(s: Float32) -> float:
    """How far the profile of the hour has proved itself, in [0, 1]."""
    if s[SEASON_XX] <= 1e-12:
        return 0.0
    return float(min(max(s[SEASON_XY] / s[SEASON_XX], 0.0), 1.0))


@njit(cache=True)
def keep_largest(best: Float64, v: float, size: int) -> None:
    """Put `v` among the `size` largest, which `best` holds in descending order."""
    for k in range(size):
        if v > best[k]:
            for j in range(size - 1, k, -1):
                best[j] = best[j - 1]
            best[k] = v
            return


@njit(cache=True)
def _top4(z: Float64) -> float:
    """Mean of the four largest absolute values."""
    best = np.zeros(4)
    for c in range(len(z)):
        keep_largest(best, abs(z[c]), 4)
    return float(best.mean())


@njit(cache=True)
def new_row(row: Float32) -> None:
    """Fill a state row of a series that was never seen."""
    row[:] = 0.0
    for c in range(N_SLOTS):
        s = row[c * WIDTH : (c + 1) * WIDTH]
        if KIND[c] != RATE:
            s[LOG_A], s[LOG_B] = max(NOISE_PRIOR[c, 0], NOISE_FLOOR[c]), NOISE_PRIOR[c, 1]
        for h in range(N_HORIZONS):
            s[POOL + 3 * h + 2] = 1.0 + 0.5 * h
    for k in range(5):
        row[H_DISPERSION + k] = 4.0
    for k in range(2 * N_RECENT_SUMS):
        row[SIDES + k] = 4.0


@njit(cache=True)
def _pace(row: Float32, surprise: float, patience: float) -> float:
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
def advance(
    values: Float64,
    counts: Float64,
    rows: Int64,
    state: Float32,
    hour: int,
    spans: Float64,
    metric_x: Float64,
    metric_n: Float64,
    metric_slot: Int64,
    z: Float64,
    extra: Float64,
) -> None:
    """Score windows against the baselines, then learn from them.

    values, counts: [m, statistics]; rows: [m] into state [capacity, STATE_WIDTH]; hour: 0..23 UTC;
    metric_x, metric_n: [m, k] user metrics, metric_slot: [m, k] their slot or -1.
    Out: z [m, N_SLOTS, len(FAMILIES)] and extra [m, len(COUNT_FEATURES)].
    """
    x, n = np.zeros(N_SLOTS), np.zeros(N_SLOTS)
    alphas = _ALPHA.copy()
    alphas[3] = 1.0 / spans[0]
    rate = 1.0 / spans[1]
    for i in range(len(rows)):
        row = state[rows[i]]
        _channel_values(values[i], counts[i], row, x, n)
        n[N_CHANNELS:] = 0.0
        for k in range(metric_slot.shape[1]):
            if metric_slot[i, k] >= 0 and metric_n[i, k] > 0:
                c = N_CHANNELS + metric_slot[i, k]
                x[c] = metric_x[i, k]
                n[c] = metric_n[i, k]
        ripe = row[PROFILE_SEEN + hour] >= 5
        usual_hour = 0.0
        for c in range(N_SLOTS):
            s = row[c * WIDTH : (c + 1) * WIDTH]
            if _is_unused(s, n[c]):
                z[i, c] = 0.0
                continue
            if KIND[c] == RATE:
                _score_share(s, c, x[c], n[c], z[i, c], alphas)
                continue
            s[LAST] = row[PROFILE + hour * N_CHANNELS + c] if ripe and c < N_CHANNELS else 0.0
            season = _gain(s) * s[LAST]
            if c == 0:
                usual_hour = np.exp(min(s[MU] + season, 20.0)) - 1.0
            _score_mean(s, season, x[c], n[c], z[i, c], alphas)
        counting.compare(values[i, 0], usual_hour, row, extra[i])
        speed = _pace(row, _top4(z[i, :, 1]), spans[2])
        _learn(x, n, z[i], extra[i], values[i, 0], row, hour, alphas, rate, speed)


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
def _learn(
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
) -> None:
    day = rate
    if row[H_RELEARN] > 0:
        rate = max(rate, 1.0 / 60.0)
    ripe = row[PROFILE_SEEN + hour] >= 5
    season_rate = max(rate * 24.0 / 3.0, 1.0 / (row[PROFILE_SEEN + hour] + 1.0)) * speed
    for c in range(N_SLOTS):
        s = row[c * WIDTH : (c + 1) * WIDTH]
        if _is_unused(s, n[c]):
            continue
        if KIND[c] == RATE:
            _learn_share(s, c, x[c], n[c], z[c], rate, speed)
            _discount(s, z[c], day)
            continue
        season = _gain(s) * s[LAST]
        _learn_mean(s, season, ripe and c < N_CHANNELS, x[c], n[c], NOISE_FLOOR[c], z[c], rate, speed)
        if c < N_CHANNELS and n[c] > 0 and row[H_SEEN] > 30:
            at = PROFILE + hour * N_CHANNELS + c
            sigma = np.sqrt(np.exp(s[LOG_A]) + np.exp(s[LOG_B]) / n[c])
            r = x[c] - s[MU]
            row[at] += season_rate * _clip(r - row[at], 3.0 * sigma + abs(row[at]))
        _discount(s, z[c], day)
    if row[H_SEEN] > 30:
        row[PROFILE_SEEN + hour] += speed
    _learn_slopes(x, n, row, rate)
    counting.learn(count, extra, row, alphas, rate, speed)
