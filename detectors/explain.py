"""Why a window is an alarm: which published features weigh how much, and what was expected of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from detectors import features
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
from detectors.layout import HOURS, LOG_A, LOG_B, MU, PROFILE, SEASON_XX, SEASON_XY, SEEN, WIDTH
from detectors.types import FEATURES, METRIC_PREFIX, Contribution, Float32, Float64

_SOURCES = features.sources()
_NAMED = np.array([s is not None for s in _SOURCES])
_SUMMARY = features.summary_families()
_TARGETS = [published_name(c) for c in CHANNELS]
_KEEP = 5
_BAND = 2.0  # standard deviations on either side
_INSIDE = 0.2  # how much a feature weighs that lies in its own band: internal statistics may speak through it


def expected_band(row: Float32, slot: int, n: float, hour: int) -> tuple[float, float, float] | None:
    """(expected, low, high) of a slot in its own unit, for a window of n records; None before any history."""
    s = row[slot * WIDTH : (slot + 1) * WIDTH].astype(float)
    if s[SEEN] < 1:
        return None
    if KIND[slot] == RATE:
        p = min(max((s[LOG_A] + 20 * RATE_PRIOR[slot]) / (s[LOG_B] + 20), 0.0), 1.0)
        half = _BAND * np.sqrt(p * (1 - p) / max(n, 1.0))
        return float(p), float(max(p - half, 0.0)), float(min(p + half, 1.0))
    season = 0.0
    if slot < N_CHANNELS and s[SEASON_XX] > 1e-12:
        gain = min(max(s[SEASON_XY] / s[SEASON_XX], 0.0), 1.0)
        season = gain * float(row[PROFILE + (hour % HOURS) * N_CHANNELS + slot])
    mean = s[MU] + season
    half = _BAND * np.sqrt(np.exp(s[LOG_A]) + np.exp(s[LOG_B]) / max(n, 1.0))
    three = np.array([mean, mean - half, mean + half])
    if slot >= N_CHANNELS:
        three = np.sign(three) * np.expm1(np.abs(three)) / 1e3
    elif KIND[slot] == LOG:
        three = np.maximum(np.exp(three) - 1e-3, 0.0)
    elif KIND[slot] == COUNT:
        three = np.maximum(np.expm1(three), 0.0)
    return float(three[0]), float(three[1]), float(three[2])


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
    contributions: Float64, z: Float64, row: Float32, hour: int, values: Float64, counts: Float64,
    metrics: dict[str, tuple[float, float]], slots: dict[int, str],
) -> tuple[Contribution, ...]:  # fmt: skip
    """The reasons of one anomalous row, shares sum to 1; what lies outside its band before the rest."""
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
        expected, low, high = expected_band(row, slot, n, hour) or (None, None, None)
        seen = observed if np.isfinite(observed) else None
        if low is None or high is None or seen is None or low <= seen <= high:
            weight *= _INSIDE
        reasons.append(Contribution(name, seen, expected, low, high, weight))
    reasons.sort(key=lambda reason: (-reason.contribution, reason.feature))
    total = sum(reason.contribution for reason in reasons[:_KEEP]) or 1.0
    return tuple(replace(reason, contribution=reason.contribution / total) for reason in reasons[:_KEEP])
