"""Why a window is an alarm: which published features weigh how much, and what was expected of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from detectors import features
from detectors.baseline import ALPHA, FAMILIES
from detectors.channels import (
    CHANNELS,
    COUNT,
    KIND,
    LOG,
    N_CHANNELS,
    N_SLOTS,
    RATE,
    RATE_PRIOR,
    published_name,
)
from detectors.layout import LOG_A, LOG_B, MU, POOL, SEEN, WIDTH
from detectors.learning import season
from detectors.types import FEATURES, METRIC_PREFIX, Contribution, Float32, Float64

_SOURCES = features.sources()
_NAMED = np.array([s is not None for s in _SOURCES])
_SUMMARY = features.summary_families()
_TARGETS = [published_name(c) for c in CHANNELS]
_KEEP = 5
_BAND = 2.0  # standard deviations on either side
_HORIZONS = [(windows, h, FAMILIES.index(f"z{windows}")) for h, windows in enumerate((3, 10, 40))]
_INSIDE = 0.2  # how much a feature weighs that lies in its own band: internal statistics may speak through it


def expected_band(row: Float32, slot: int, n: float) -> tuple[float, float, float] | None:
    """(expected, low, high) of a slot in its own unit, for a window of n records; None before any history."""
    s = _slot(row, slot)
    if s[SEEN] < 1:
        return None
    if KIND[slot] == RATE:
        return _share_band(s, slot, n)
    mean = _usual_level(row, slot)
    half = _BAND * np.sqrt(np.exp(s[LOG_A]) + np.exp(s[LOG_B]) / max(n, 1.0))
    expected, low, high = _in_own_unit(np.array([mean, mean - half, mean + half]), slot).tolist()
    return expected, low, high


def pooled(
    row: Float32, scores: Float64, slot: int, n: float
) -> tuple[int, float, float, float, float] | None:
    """(windows, observed, expected, low, high) of the newest windows together, older ones counting less.

    n: records of the newest window. The horizon is the one at which the slot's `scores` [families] are
    furthest out. None where what was seen over it lies inside the band, before any history, and for a mean
    that has just not been measured: its sums tell a level only while they are fed.
    """
    s, is_share = _slot(row, slot), KIND[slot] == RATE
    horizons = _HORIZONS if is_share else _HORIZONS[1:]
    windows, h, _ = max(horizons, key=lambda each: abs(float(scores[each[2]])))
    total, weight, usual_square = s[POOL + 3 * h : POOL + 3 * h + 3]
    if s[SEEN] < 1 or weight <= 0 or (n <= 0 and not is_share):
        return None
    usual_square = max(usual_square, 0.3)
    if is_share:
        observed = float(min(max(total / weight, 0.0), 1.0))
        expected, low, high = _share_band(s, slot, weight / usual_square)
    else:
        both = 2.0 - ALPHA[h]  # the weights in `weight` are squared ones
        mean = _usual_level(row, slot)
        half = _BAND * np.sqrt(usual_square / weight) / both
        four = np.array([mean + total / weight / both, mean, mean - half, mean + half])
        observed, expected, low, high = _in_own_unit(four, slot).tolist()
    return None if low <= observed <= high else (windows, observed, expected, low, high)


def _slot(row: Float32, slot: int) -> Float64:
    return row[slot * WIDTH : (slot + 1) * WIDTH].astype(float)


def _share_band(s: Float64, slot: int, n: float) -> tuple[float, float, float]:
    p = min(max((s[LOG_A] + 20 * RATE_PRIOR[slot]) / (s[LOG_B] + 20), 0.0), 1.0)
    half = _BAND * np.sqrt(p * (1 - p) / max(n, 1.0))
    return float(p), float(max(p - half, 0.0)), float(min(p + half, 1.0))


def _usual_level(row: Float32, slot: int) -> float:
    """On the channel's own scale, with what was made of the time when the newest window was scored."""
    return float(row[slot * WIDTH + MU]) + season(row, slot)


def _in_own_unit(values: Float64, slot: int) -> Float64:
    """From the channel's scale."""
    if slot >= N_CHANNELS:
        return np.sign(values) * np.expm1(np.abs(values)) / 1e3
    if KIND[slot] == LOG:
        return np.maximum(np.exp(values) - 1e-3, 0.0)
    return np.maximum(np.expm1(values), 0.0) if KIND[slot] == COUNT else values


def weigh(contributions: Float64, z: Float64, metric_names: dict[int, str]) -> dict[str, float]:
    """One row's contributions [N_FEATURES] and scores [N_SLOTS, families] -> weight per published feature.

    What a summary feature contributes is shared among the channels that made it large.
    """
    weights: dict[str, float] = defaultdict(float)
    for k in np.flatnonzero((contributions > 0) & _NAMED).tolist():
        weights[str(_SOURCES[k])] += float(contributions[k])
    first = len(_NAMED) - len(_SUMMARY)
    targets = _TARGETS + [METRIC_PREFIX + metric_names.get(k, "") for k in range(N_SLOTS - N_CHANNELS)]
    shares = np.abs(z) ** 4
    for k, (family, on_metrics) in enumerate(_SUMMARY):
        amount = float(contributions[first + k])
        lower, upper = (N_CHANNELS, N_SLOTS) if on_metrics else (1, N_CHANNELS)
        total = float(shares[lower:upper, family].sum())
        if amount <= 0 or total <= 0:
            continue
        for c in np.flatnonzero(shares[lower:upper, family] > 0.02 * total).tolist():
            weights[targets[lower + c]] += amount * float(shares[lower + c, family]) / total
    return weights


def explain(
    contributions: Float64, z: Float64, row: Float32, values: Float64, counts: Float64,
    metrics: dict[str, tuple[float, float]], slots: dict[int, str],
) -> tuple[Contribution, ...]:  # fmt: skip
    """The reasons of one anomalous row, shares sum to 1; what lies outside its band before the rest.

    Where the window itself lies inside the band, or is not known, but the newest windows together do not,
    a reason tells of these.
    """
    slot_of = {METRIC_PREFIX + name: N_CHANNELS + slot for slot, name in slots.items()}
    reasons = []
    for name, weight in weigh(contributions, z, slots).items():
        if name in slot_of:
            slot = slot_of[name]
            observed, n = metrics.get(name[len(METRIC_PREFIX) :], (float("nan"), 0.0))
        elif name in FEATURES:
            slot = FEATURES.index(name)
            observed, n = float(values[slot]), float(counts[slot])
        else:
            continue
        expected, low, high = expected_band(row, slot, n) or (None, None, None)
        seen, windows = observed if np.isfinite(observed) else None, 1
        if low is None or high is None or seen is None or low <= seen <= high:
            together = pooled(row, z[slot], slot, n)
            if together is None:
                weight *= _INSIDE
            else:
                windows, seen, expected, low, high = together
        reasons.append(Contribution(name, seen, expected, low, high, weight, windows))
    reasons.sort(key=lambda reason: (-reason.contribution, reason.feature))
    total = sum(reason.contribution for reason in reasons[:_KEEP]) or 1.0
    return tuple(replace(reason, contribution=reason.contribution / total) for reason in reasons[:_KEEP])
