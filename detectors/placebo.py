"""Windows behind a change of version against those in front of it: see `detectors.versions`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detectors.types import STATISTIC_INDEX, Bool, Float64, Int64
from detectors.versions import (
    LATENCY_GIVEN_TOKENS,
    MAX_SLOPE,
    METRICS,
    MIN_RECORDS,
    PLACE,
    Difference,
    two_sided_p,
)

BEFORE_MS = 1_800_000
"""What lies in front of a change is this long, or as long as what lies behind it."""
MIN_PLACEBOS = 12
MAX_PLACEBOS = 200
_MAX_FREEDOM = 15.0
_HALF_WEIGHT_RECORDS = 20.0  # a window of so many records weighs half of one of very many


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Running sums over windows [w + 1, metrics]: records, weights, weighted values, and their noise."""

    n: Float64
    weight: Float64
    value: Float64
    noise: Float64
    per_record: Float64  # [metrics], variance of one record


def before_after(
    start_ms: Int64,
    values: Float64,
    counts: Float64,
    calm: Bool,
    *,
    old_until_ms: int,
    new_from_ms: int,
    new_until_ms: int,
) -> list[Difference]:
    """Windows [new_from_ms, new_until_ms) against those up to `old_until_ms`.

    start_ms: [w] ascending, gaps allowed; values, counts: [w, len(STATISTICS)]; calm: [w], windows of alarms
    in front of the change are left out. Metrics that too few records carry, or of which too little past is
    known to say what is usual, are absent.
    """
    is_old = start_ms < old_until_ms
    usable = np.where(is_old, calm, (start_ms >= new_from_ms) & (start_ms < new_until_ms))
    start_ms, values, counts = start_ms[usable], values[usable], counts[usable]
    is_old = is_old[usable]
    length_ms = new_until_ms - new_from_ms
    before_ms = max(length_ms, BEFORE_MS)
    if length_ms <= 0 or not is_old.any() or is_old.all():
        return []
    y, n = _columns(values, counts, is_old)
    sums = _sums(y, n, is_old)
    first_ms = int(start_ms[0])
    step_ms = max(length_ms // 2, (old_until_ms - first_ms) // MAX_PLACEBOS, 1)
    times = np.arange(old_until_ms - length_ms, first_ms + before_ms - 1, -step_ms, dtype=np.int64)
    if len(times) < MIN_PLACEBOS:
        return []
    bounds = [times - before_ms, times, times, times + length_ms]
    placebo, placebo_noise, enough, _, _ = _apart(sums, [np.searchsorted(start_ms, b) for b in bounds])
    here = [np.array([at]) for at in (old_until_ms - before_ms, old_until_ms, new_from_ms, new_until_ms)]
    apart, noise, known, old, new = _apart(sums, [np.searchsorted(start_ms, b) for b in here])
    records = sums.n[-1] - sums.n[np.searchsorted(start_ms, new_from_ms)]
    found = []
    for m, metric in enumerate(METRICS):
        own = enough[:, m]
        if not known[0, m] or own.sum() < MIN_PLACEBOS:
            continue
        usual, usual_noise = placebo[own, m], placebo_noise[own, m]
        freedom = min((len(usual) * step_ms + length_ms) / (2 * length_ms), _MAX_FREEDOM)
        p = _placebo_p(float(apart[0, m]), float(noise[0, m]), usual, usual_noise, freedom)
        found.append(Difference(metric.name, float(old[0, m]), float(new[0, m]), p, int(records[m])))
    return found


def _placebo_p(apart: float, noise: float, usual: Float64, usual_noise: Float64, freedom: float) -> float:
    """How rarely two stretches lie so far apart: a t-test against the spread of the placebos, and where one
    of them lay further apart than this, no less than the share of such."""
    sizes = np.abs(usual)
    spread = max(1.4826 * float(np.median(sizes)), float(np.quantile(sizes, 0.9)) / 1.645)
    between = max(spread**2 - float(np.median(usual_noise)), 0.0)
    z = abs(apart) / math.sqrt(between + noise) if between + noise > 0 else 0.0
    others = sizes / np.sqrt(np.maximum(between + usual_noise, 1e-300))
    beyond = int((others >= z).sum())
    p = two_sided_p(z, freedom)
    return max(p, beyond / len(usual)) if beyond else p


def _columns(values: Float64, counts: Float64, is_old: Bool) -> tuple[Float64, Float64]:
    """[w, metrics] on their scales (logarithms, shares, means), and the records that each rests on."""
    y = np.full((len(values), len(METRICS)), np.nan)
    n = np.zeros_like(y)
    for m, metric in enumerate(METRICS):
        if metric.name == LATENCY_GIVEN_TOKENS:
            at = STATISTIC_INDEX["latency_log_mean"]
            y[:, m] = values[:, at] - _explained(values, counts, is_old)
        else:
            at = STATISTIC_INDEX[metric.name]
            with np.errstate(divide="ignore", invalid="ignore"):
                y[:, m] = np.log(np.maximum(values[:, at], 1e-3)) if metric.kind == "log" else values[:, at]
        n[:, m] = counts[:, at]
    known = np.isfinite(y) & (n > 0)
    return np.where(known, y, 0.0), np.where(known, n, 0.0)


def _explained(values: Float64, counts: Float64, is_old: Bool) -> Float64:
    """[w]: what the lengths of input and output say about ln latency, by slopes inside old windows."""
    total = np.zeros(len(values))
    for side in ("input", "output"):
        mean, std, cov = (
            STATISTIC_INDEX[name]
            for name in (f"{side}_tokens_log_mean", f"{side}_tokens_log_std", f"latency_{side}_log_cov")
        )
        known = is_old & np.isfinite(values[:, cov]) & np.isfinite(values[:, std])
        n = counts[known, cov]
        spread = float((n * values[known, std] ** 2).sum())
        slope = float((n * values[known, cov]).sum()) / spread if spread > 1e-9 else 0.0
        total += min(max(slope, 0.0), MAX_SLOPE) * np.nan_to_num(values[:, mean])
    return total


def _sums(y: Float64, n: Float64, is_old: Bool) -> _Sums:
    shares = np.array([metric.kind == "share" for metric in METRICS])
    weight = np.where(shares, n, n / (n + _HALF_WEIGHT_RECORDS))
    noise = np.divide(weight**2, n, out=np.zeros_like(n), where=n > 0)
    per_record = np.zeros(len(METRICS))
    for m in range(len(METRICS)):
        own = np.flatnonzero(is_old & (n[:, m] > 0))
        if len(own) > 10:  # neighbouring windows differ by the chance of their records, and little else
            step = np.diff(y[own, m]) ** 2 / (1 / n[own[1:], m] + 1 / n[own[:-1], m])
            per_record[m] = float(np.mean(np.minimum(step, np.quantile(step, 0.98))))

    def cumulative(part: Float64) -> Float64:
        return np.concatenate([np.zeros((1, len(METRICS))), np.cumsum(part, axis=0)])

    return _Sums(cumulative(n), cumulative(weight), cumulative(weight * y), cumulative(noise), per_record)


def _apart(sums: _Sums, at: list[Int64]) -> tuple[Float64, Float64, Bool, Float64, Float64]:
    """Stretches at[0]:at[1] and at[2]:at[3] -> how far apart, noise of that, enough records, both levels.

    Shares are compared on the arcsine scale of Anscombe (1948), where their noise is that of the count.
    """
    shares = np.array([metric.kind == "share" for metric in METRICS])
    levels, noises, counts, shown = [], [], [], []
    for a, b in ((at[0], at[1]), (at[2], at[3])):
        n, weight, value, noise = (
            part[b] - part[a] for part in (sums.n, sums.weight, sums.value, sums.noise)
        )
        safe = np.maximum(weight, 1e-12)
        mean = value / safe
        hits = np.clip(np.where(shares, value, 0.0), 0.0, n)
        angle = 2 * np.arcsin(np.sqrt((hits + 0.375) / (n + 0.75)))
        levels.append(np.where(shares, angle, mean))
        noises.append(np.where(shares, 1 / (n + 0.5), sums.per_record * noise / safe**2))
        counts.append(n)
        shown.append(np.where([metric.kind == "log" for metric in METRICS], np.exp(mean), mean))
    relative = shown[1] / np.maximum(shown[0], 1e-300)
    given = PLACE[LATENCY_GIVEN_TOKENS]
    shown[1][:, given], shown[0][:, given] = relative[:, given], 1.0
    enough = (counts[0] >= MIN_RECORDS) & (counts[1] >= MIN_RECORDS)
    return levels[1] - levels[0], noises[0] + noises[1], enough, shown[0], shown[1]
