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
    RATIOS,
)
from detectors.layout import (
    DELTA,
    H_DISPERSION,
    H_IN_XX,
    H_IN_XY,
    H_OUT_XX,
    H_OUT_XY,
    HOURS,
    LAST,
    LOCAL_LOG_VAR,
    LOCAL_MEAN,
    LOCAL_POOL,
    LOG_A,
    LOG_B,
    MU,
    N_HORIZONS,
    N_RECENT_SUMS,
    POOL,
    PROFILE,
    PROFILE_SEEN,
    SEEN,
    SIDES,
    WIDTH,
    Z_CLIP,
)
from detectors.learning import is_unused, learn, look_up_week, of_hour, of_week, pace, usual_p
from detectors.numeric import clip, keep_largest
from detectors.types import STATISTIC_INDEX, Float32, Float64, Int64

FAMILIES: tuple[str, ...] = ("z1", "z3", "z10", "z40", "z2h", "local", "local3", "size")
ALPHA = np.array([1 - np.exp(-1 / 2.0), 1 / 10, 1 / 40, 1 / 120])
_RATIO_UPPER = np.array([upper for upper, _ in RATIOS])
_RATIO_LOWER = np.array([lower for _, lower in RATIOS])
_I = STATISTIC_INDEX
_LAT, _IN, _OUT = _I["latency_log_mean"], _I["input_tokens_log_mean"], _I["output_tokens_log_mean"]
_COST, _IN_MEAN, _OUT_MEAN = _I["cost_usd_sum"], _I["input_tokens_mean"], _I["output_tokens_mean"]
_N_STATISTICS = len(STATISTIC_INDEX)
POOL_CLIP = 4.0


def horizons(window_ms: int) -> Float64:
    """Window length -> [two hours, a day, patience before a new normal, an hour] in windows; the first
    three are kept within bounds, an hour is at least one."""
    per_hour = 3_600_000 / window_ms
    return np.array(
        [
            max(20.0, 2 * per_hour),
            min(max(24 * per_hour, 240.0), 2880.0),
            max(60.0, 8 * per_hour),
            max(1.0, per_hour),
        ]
    )


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
def _pool(s: Float32, evidence: float, weight: float, out: Float64, alphas: Float64) -> None:
    """Pool one window's evidence over the horizons; out[1..4] = z of the pooled evidence."""
    for h in range(N_HORIZONS):
        o = POOL + 3 * h
        keep = 1.0 - alphas[h]
        s[o] = keep * s[o] + evidence
        s[o + 1] = keep * keep * s[o + 1] + weight
        z = s[o] / np.sqrt(s[o + 1] + 1e-12) if s[o + 1] > 0 else 0.0
        out[1 + h] = clip(z / np.sqrt(max(s[o + 2], 0.3)), Z_CLIP)


@njit(cache=True)
def _pool_share(s: Float32, events: float, trials: float, p: float, out: Float64, alphas: Float64) -> None:
    for h in range(N_HORIZONS):
        o = POOL + 3 * h
        keep = 1.0 - alphas[h]
        s[o] = keep * s[o] + events
        s[o + 1] = keep * s[o + 1] + trials
        out[1 + h] = clip(_share_z(s[o], s[o + 1], p) / np.sqrt(max(s[o + 2], 0.3)), Z_CLIP)


@njit(cache=True)
def _score_share(s: Float32, c: int, x: float, n: float, out: Float64, alphas: Float64) -> None:
    p = usual_p(s, c)
    z = _share_z(x * n, n, p) if n > 0 else 0.0
    out[0] = clip(z, Z_CLIP)
    _pool_share(s, x * n, n, p, out, alphas)
    out[5], out[6] = 0.0, 0.0
    out[7] = (s[POOL] - p * s[POOL + 1]) / (s[POOL + 1] + 1.0)


@njit(cache=True)
def _score_mean(s: Float32, usual: float, x: float, n: float, out: Float64, alphas: Float64) -> None:
    if n <= 0 or s[SEEN] <= 0:
        out[0], out[5] = 0.0, 0.0
        _pool(s, 0.0, 0.0, out, alphas)
        out[6] = clip(2.0 * s[LOCAL_POOL], Z_CLIP)
        s[DELTA] *= 0.9
        out[7] = s[DELTA]
        return
    spread = np.exp(s[LOG_A]) + np.exp(s[LOG_B]) / n
    spread *= 1.0 + 1.0 / s[SEEN]
    r = x - s[MU] - usual
    out[0] = clip(r / np.sqrt(spread), Z_CLIP)
    bounded = clip(out[0], POOL_CLIP)  # one wild window is a spike, not a change of level
    _pool(s, bounded / np.sqrt(spread), 1.0 / spread, out, alphas)
    s[DELTA] += 0.4 * (clip(r, 3.0) - s[DELTA])
    out[7] = s[DELTA]
    floor = np.exp(s[LOG_B]) / n
    local = (x - s[LOCAL_MEAN]) / np.sqrt(np.exp(s[LOCAL_LOG_VAR]) + 0.5 * floor)
    out[5] = clip(local, Z_CLIP)
    s[LOCAL_POOL] = 0.6 * s[LOCAL_POOL] + 0.4 * clip(out[5], POOL_CLIP)
    out[6] = clip(2.0 * s[LOCAL_POOL], Z_CLIP)


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


@njit(cache=True, nogil=True)
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

    values, counts: [m, statistics]; rows: [m] into state [capacity, STATE_WIDTH]; hour: 0..167 UTC,
    of the week that begins on a Thursday as the epoch does;
    metric_x, metric_n: [m, k] user metrics, metric_slot: [m, k] their slot or -1.
    Out: z [m, N_SLOTS, len(FAMILIES)] and extra [m, len(COUNT_FEATURES)].
    """
    x, n = np.zeros(N_SLOTS), np.zeros(N_SLOTS)
    alphas = ALPHA.copy()
    alphas[3] = 1.0 / spans[0]
    rate = 1.0 / spans[1]
    day_hour = hour % HOURS
    for i in range(len(rows)):
        row = state[rows[i]]
        _channel_values(values[i], counts[i], row, x, n)
        n[N_CHANNELS:] = 0.0
        for k in range(metric_slot.shape[1]):
            if metric_slot[i, k] >= 0 and metric_n[i, k] > 0:
                c = N_CHANNELS + metric_slot[i, k]
                x[c] = metric_x[i, k]
                n[c] = metric_n[i, k]
        look_up_week(row, hour, spans[3])
        ripe = row[PROFILE_SEEN + day_hour] >= 5
        usual_hour = 0.0
        for c in range(N_SLOTS):
            s = row[c * WIDTH : (c + 1) * WIDTH]
            if is_unused(s, n[c]):
                z[i, c] = 0.0
                continue
            if KIND[c] == RATE:
                _score_share(s, c, x[c], n[c], z[i, c], alphas)
                continue
            s[LAST] = row[PROFILE + day_hour * N_CHANNELS + c] if ripe and c < N_CHANNELS else 0.0
            usual = of_hour(s)
            if c == 0:
                usual += of_week(row)
                usual_hour = np.exp(min(s[MU] + usual, 20.0)) - 1.0
            _score_mean(s, usual, x[c], n[c], z[i, c], alphas)
        counting.compare(values[i, 0], usual_hour, row, extra[i])
        speed = pace(row, _top4(z[i, :, 1]), spans[2])
        learn(x, n, z[i], extra[i], values[i, 0], row, hour, alphas, rate, speed, spans[3])
