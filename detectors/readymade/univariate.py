"""One metric, no training: how far is a value from the nearest value ever seen, and how rare is that?

The distance to the nearest past value is a kNN detector (Ramaswamy et al., SIGMOD 2000) with k = 1 in one
dimension, less what is usual where that neighbour lies (the idea of LOF, Breunig et al., SIGMOD 2000). Its
surprise is the tail probability among all earlier distances, with an exponential tail behind the highest
seen. A second witness asks the same of the mean of the last two hours, among those of the same time of day.
An event is announced once: after that only something more surprising counts, until the memory of it has
faded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from detectors.readymade.evidence import carried
from detectors.types import Bool, Float64, Int64

DAY_S = 86_400
HOURS = 24


@dataclass(frozen=True, slots=True)
class UnivariateOptions:
    """One fixed configuration for every series."""

    warm_up: int = 50  # distances that must be known before anything surprises
    tail: float = 0.95  # quantile of the distances from which the tail is taken as exponential
    gap_share: float = 0.5  # of the gap between the values behind the nearest that a distance must exceed
    hourly_weight: float = 0.2  # of the surprise of the last two hours beside that of the value
    hold_share: float = 0.3  # rows that an announced event is held, as a share of the probation
    fade: float = 0.97  # per row behind the hold: what remains of the surprise to exceed
    alarm_at: float = 2.0  # surprise (powers of ten) that raises the alarm


def probation_rows(rows: int) -> int:
    """The leading rows that are only learned from: 15 %, at most 750."""
    return min(math.floor(0.15 * rows), 750)


def score_series(
    values: Float64,
    probation: int,
    options: UnivariateOptions | None = None,
    *,
    seconds: Float64 | None = None,
    budget: float = 1.0,
) -> tuple[Float64, Bool]:
    """values: [n]; NaN and infinite values repeat the last one. Returns score in [0, 1] and alarm, [n].

    `seconds`: [n], the time of each row, of which the time of day is used; NaN repeats the last one. Entry i
    depends on rows up to i only. A score of 0.5 means once in 100 rows, 0.75 once in a million. The alarm
    fires at a surprise that is `budget` times as frequent as that of the options.
    """
    options = options or UnivariateOptions()
    filled = carried(values, 0.0)
    rare = surprise(nearest_distance(filled, options.gap_share), options.warm_up, options.tail)
    if seconds is not None:
        rare = rare + options.hourly_weight * hourly_surprise(filled, seconds, probation, options)
    fresh = announce(rare, int(options.hold_share * probation), options.fade)
    fresh[:probation] = 0.0
    alarm = (fresh > 0.0) & (fresh >= options.alarm_at - math.log10(budget))
    return fresh / (fresh + 2.0), alarm


def hourly_surprise(values: Float64, seconds: Float64, probation: int, options: UnivariateOptions) -> Float64:
    """Surprise of the mean of the last two hours among those at about this time on the days before, [n].

    0 until every hour has been seen half a day ago or earlier, and where a row stands for more than two
    hours. The step between rows is taken from the probation. values: [n], finite; seconds: [n].
    """
    out = np.zeros(len(values))
    steps = np.diff(seconds[:probation])
    steps = steps[steps > 0.0]
    day = round(DAY_S / float(np.median(steps))) if len(steps) else 0
    first = day + day // 2
    if day < HOURS // 2 or first >= len(values):
        return out
    hour = (carried(seconds, 0.0) % DAY_S * HOURS // DAY_S).astype(np.int64)
    means = trailing_mean(values, max(1, round(2 * day / HOURS)))
    # the nearest of d days is about d times as near as that of one
    distance = nearest_at_hour(means, hour, day // 2) * (np.arange(len(values)) / day)
    out[first:] = surprise(distance[first:], options.warm_up, options.tail)
    return out


@njit(cache=True)
def insert(ordered: Float64, count: int, value: float) -> None:
    """Put a value into its place among the first `count` values, which are in order."""
    at = np.searchsorted(ordered[:count], value)
    ordered[at + 1 : count + 1] = ordered[at:count].copy()
    ordered[at] = value


@njit(cache=True)
def nearest_distance(values: Float64, gap_share: float = 0.0) -> Float64:
    """Distance of each value to the nearest one before it, [n]; 0 for the first.

    Less `gap_share` of the mean gap between that one and the two behind it, seen from the value, and at
    least 0: among values that lie far apart another one is nothing new.
    """
    n = len(values)
    out, ordered = np.zeros(n), np.empty(n)
    for t in range(n):
        at = np.searchsorted(ordered[:t], values[t])
        below = values[t] - ordered[at - 1] if at > 0 else np.inf
        above = ordered[at] - values[t] if at < t else np.inf
        if t > 0 and below <= above:
            far = max(at - 3, 0)
            gap = (ordered[at - 1] - ordered[far]) / max(at - 1 - far, 1)
            out[t] = max(below - gap_share * gap, 0.0)
        elif t > 0:
            far = min(at + 2, t - 1)
            gap = (ordered[far] - ordered[at]) / max(far - at, 1)
            out[t] = max(above - gap_share * gap, 0.0)
        insert(ordered, t, values[t])
    return out


@njit(cache=True)
def nearest_at_hour(values: Float64, hour: Int64, delay: int) -> Float64:
    """Distance of each value to the nearest of this hour of the day and the two beside it, [n].

    Among the values at least `delay` rows before it; 0 as long as there is none. hour: [n], 0 to 23.
    """
    n = len(values)
    out, ordered, count = np.zeros(n), np.empty((HOURS, n)), np.zeros(HOURS, np.int64)
    for t in range(n):
        if t >= delay:
            seen = hour[t - delay]
            insert(ordered[seen], count[seen], values[t - delay])
            count[seen] += 1
        nearest = np.inf
        for beside in (HOURS - 1, 0, 1):
            near = (hour[t] + beside) % HOURS
            at = np.searchsorted(ordered[near, : count[near]], values[t])
            if at > 0:
                nearest = min(nearest, values[t] - ordered[near, at - 1])
            if at < count[near]:
                nearest = min(nearest, ordered[near, at] - values[t])
        if nearest < np.inf:
            out[t] = nearest
    return out


@njit(cache=True)
def trailing_mean(values: Float64, rows: int) -> Float64:
    """Mean of each value and those before it, `rows` at most, [n]."""
    out = np.empty(len(values))
    for t in range(len(values)):
        out[t] = np.mean(values[max(t + 1 - rows, 0) : t + 1])
    return out


@njit(cache=True)
def surprise(evidence: Float64, warm_up: int, tail: float) -> Float64:
    """-log10 of the share of earlier values as large as each value, [n]; exponential beyond `tail`."""
    n = len(evidence)
    out, ordered = np.zeros(n), np.empty(n)
    for t in range(n):
        if t >= warm_up:
            cut = int(tail * t)
            edge = ordered[cut]
            if evidence[t] > edge:
                unit = np.mean(ordered[cut:t] - edge) + 0.02 * abs(edge) + 1e-12
                out[t] = -math.log10((t - cut) / t) + (evidence[t] - edge) / unit / math.log(10.0)
            else:
                at = np.searchsorted(ordered[:t], evidence[t])
                out[t] = -math.log10((t - at + 0.5) / (t + 1.0))
        insert(ordered, t, evidence[t])
    return out


@njit(cache=True)
def announce(rare: Float64, hold: int, fade: float) -> Float64:
    """Keep a value only where it exceeds all that was kept before, less what has faded, [n]; else 0."""
    out = np.zeros(len(rare))
    record, age = 0.0, 0
    for t in range(len(rare)):
        if rare[t] > record:
            out[t] = record = rare[t]
            age = 0
        else:
            age += 1
            if age > hold:
                record *= fade
    return out
