"""One metric, no training: how far is a value from the nearest value ever seen, and how rare is that?

The distance to the nearest past value is a kNN detector (Ramaswamy et al., SIGMOD 2000) with k = 1 in one
dimension. Its surprise is the tail probability among all earlier distances, with an exponential tail
behind the highest seen. An event is announced once: after that only something more surprising counts,
until the memory of it has faded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from detectors.types import Bool, Float64


@dataclass(frozen=True, slots=True)
class UnivariateOptions:
    """One fixed configuration for every series."""

    warm_up: int = 50  # distances that must be known before anything surprises
    tail: float = 0.95  # quantile of the distances from which the tail is taken as exponential
    hold_share: float = 0.3  # rows that an announced event is held, as a share of the probation
    fade: float = 0.97  # per row behind the hold: what remains of the surprise to exceed
    alarm_at: float = 2.0  # surprise (powers of ten) that raises the alarm


def probation_rows(rows: int) -> int:
    """The leading rows that are only learned from: 15 %, at most 750."""
    return min(math.floor(0.15 * rows), 750)


def score_series(
    values: Float64, probation: int, options: UnivariateOptions | None = None, *, budget: float = 1.0
) -> tuple[Float64, Bool]:
    """values: [n]; NaN and infinite values repeat the last one. Returns score in [0, 1] and alarm, [n].

    Entry i depends on rows up to i only. A score of 0.5 means once in 100 rows, 0.75 once in a million.
    The alarm fires at a surprise that is `budget` times as frequent as that of the options.
    """
    options = options or UnivariateOptions()
    known = np.isfinite(values)
    newest = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    filled = np.where(newest >= 0, values[np.maximum(newest, 0)], 0.0)
    rare = surprise(nearest_distance(filled), options.warm_up, options.tail)
    fresh = announce(rare, int(options.hold_share * probation), options.fade)
    fresh[:probation] = 0.0
    alarm = (fresh > 0.0) & (fresh >= options.alarm_at - math.log10(budget))
    return fresh / (fresh + 2.0), alarm


@njit(cache=True)
def nearest_distance(values: Float64) -> Float64:
    """Distance of each value to the nearest one before it, [n]; 0 for the first."""
    n = len(values)
    out, ordered = np.zeros(n), np.empty(n)
    for t in range(n):
        at = np.searchsorted(ordered[:t], values[t])
        if t > 0:
            below = values[t] - ordered[at - 1] if at > 0 else np.inf
            above = ordered[at] - values[t] if at < t else np.inf
            out[t] = min(below, above)
        ordered[at + 1 : t + 1] = ordered[at:t].copy()
        ordered[at] = values[t]
    return out


@njit(cache=True)
def surprise(evidence: Float64, warm_up: int, tail: float) -> Float64:
    """-log10 of the share of earlier values as large as each value, [n]; exponential beyond `tail`."""
    n = len(evidence)
    out, ordered = np.zeros(n), np.empty(n)
    for t in range(n):
        at = np.searchsorted(ordered[:t], evidence[t])
        if t >= warm_up:
            cut = int(tail * t)
            edge = ordered[cut]
            if evidence[t] > edge:
                unit = np.mean(ordered[cut:t] - edge) + 0.02 * abs(edge) + 1e-12
                out[t] = -math.log10((t - cut) / t) + (evidence[t] - edge) / unit / math.log(10.0)
            else:
                out[t] = -math.log10((t - at + 0.5) / (t + 1.0))
        ordered[at + 1 : t + 1] = ordered[at:t].copy()
        ordered[at] = evidence[t]
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
