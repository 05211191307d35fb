"""Faults injected into a user's own windows, so that the GBDT learns what an anomaly would look like there.

A fault moves one cause (latency, errors, traffic, ...) and with it every statistic that the cause shows in,
by a random size, shape, share and duration. Windows in which nothing visibly changed are not labelled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detectors.types import STATISTIC_INDEX, Bool, Float64

_I = STATISTIC_INDEX
CAUSES: tuple[str, ...] = (
    "latency",
    "tail",
    "ttft",
    "errors",
    "throttling",
    "outage",
    "loss",
    "surge",
    "empty",
    "runaway",
    "memory",
    "gpu",
    "confidence",
    "accuracy",
    "statistic",
)
_LATENCY = tuple(
    _I[n]
    for n in (
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "latency_mean_ms",
        "latency_max_ms",
        "latency_per_output_token_ms",
        "ttft_p50_ms",
        "ttft_p95_ms",
        "tpot_p50_ms",
        "tpot_p95_ms",
    )
)
_TAIL = tuple(_I[n] for n in ("latency_p99_ms", "latency_max_ms", "ttft_p95_ms"))
_TTFT = tuple(_I[n] for n in ("ttft_p50_ms", "ttft_p95_ms"))
_FREE = tuple(
    _I[n]
    for n in (
        "queue_p95_ms",
        "input_tokens_mean",
        "output_tokens_mean",
        "cost_usd_sum",
        "latency_p95_ms",
        "memory_mb_max",
    )
)
_SHARES = {
    "errors": ("error_rate", "server_error_rate"),
    "throttling": ("error_rate", "throttled_rate"),
    "empty": ("empty_output_rate",),
    "runaway": ("max_output_rate",),
}
_NEEDS = {
    "ttft": "ttft_p50_ms",
    "empty": "empty_output_rate",
    "runaway": "max_output_rate",
    "memory": "memory_mb_max",
    "gpu": "gpu_util_mean",
    "confidence": "confidence_mean",
    "accuracy": "accuracy",
}


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault: windows [start, end) of a series and what was moved."""

    start: int
    end: int
    cause: str


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _curve(rng: np.random.Generator, length: int) -> Float64:
    """[length] intensity in (0, 1]: step, ramp, bump or on and off."""
    u = (np.arange(length) + 1) / length
    kind = int(rng.integers(0, 6))
    if kind <= 2:
        return np.ones(length)
    if kind == 3:
        return u
    if kind == 4:
        return np.sin(np.pi * np.clip(u, 0.05, 0.95))
    return np.where((np.arange(length) // int(rng.integers(2, 12))) % 2 == 0, 1.0, 0.0)


def inject(
    values: Float64, counts: Float64, *, normal: Bool, rng: np.random.Generator, every: int, longest: int
) -> tuple[Float64, Float64, Bool, list[Injected]]:
    """A copy of one series with faults.

    values, counts: [T, statistics]; normal: [T], where faults may lie; every: mean windows between faults;
    longest: windows of the longest. Returns values, counts, changed [T] (visibly anomalous) and the faults.
    """
    values, counts = values.copy(), counts.copy()
    changed = np.zeros(len(values), bool)
    done: list[Injected] = []
    at = int(rng.exponential(every)) + 30
    while at < len(values) - 4:
        length = int(_log_uniform(rng, 3, max(longest, 4)))
        end = min(at + length, len(values))
        if normal[at:end].all():
            cause = str(rng.choice(CAUSES))
            touched = _apply(cause, values[at:end], counts[at:end], rng)
            if touched.sum() >= 1:
                changed[at:end] = touched
                done.append(Injected(at, end, cause))
        at = end + 40 + int(rng.exponential(every))
    return values, counts, changed, done


def _apply(cause: str, v: Float64, n: Float64, rng: np.random.Generator) -> Bool:
    """Move the windows v, n [length, statistics] in place -> where it shows."""
    curve = _curve(rng, len(v))
    needed = _NEEDS.get(cause)
    if needed is not None and not (n[:, _I[needed]] > 0).any():
        return np.zeros(len(v), bool)
    if cause in ("outage", "loss", "surge"):
        return _traffic(cause, v, n, curve, rng)
    if cause in _SHARES:
        return _shares(cause, v, n, curve, rng)
    if cause in ("confidence", "accuracy", "gpu"):
        return _levels(cause, v, n, curve, rng)
    if cause == "latency":
        factor = np.exp(np.log(_log_uniform(rng, 1.3, 10)) * curve)
        _multiply(v, _LATENCY, factor)
        v[:, _I["latency_log_mean"]] += np.log(factor)
    elif cause == "tail":
        factor = np.exp(np.log(_log_uniform(rng, 2, 15)) * curve)
        _multiply(v, _TAIL, factor)
        v[:, _I["latency_log_std"]] *= 1 + 0.1 * np.log(factor)
        v[:, _I["latency_mean_ms"]] *= 1 + 0.03 * (factor - 1)
    elif cause == "ttft":
        _multiply(v, _TTFT, np.exp(np.log(_log_uniform(rng, 1.4, 10)) * curve))
    elif cause == "memory":
        factor = np.exp(np.log(_log_uniform(rng, 1.15, 2.5)) * curve)
        _multiply(v, (_I["memory_mb_max"], _I["memory_mb_mean"]), factor)
    else:
        column = int(rng.choice(_FREE))
        size = _log_uniform(rng, 1.6, 8) if rng.random() < 0.7 else 1 / _log_uniform(rng, 2, 8)
        _multiply(v, (column,), np.exp(np.log(size) * curve))
        return (n[:, column] > 0) & (curve > 0.2)
    return (n[:, _I["latency_p50_ms"]] > 0) & (curve > 0.2)


def _multiply(v: Float64, columns: tuple[int, ...], factor: Float64) -> None:
    v[:, list(columns)] *= factor[:, None]


def _traffic(cause: str, v: Float64, n: Float64, curve: Float64, rng: np.random.Generator) -> Bool:
    before = v[:, 0].copy()
    if cause == "surge":
        factor = np.exp(np.log(_log_uniform(rng, 3, 12)) * curve)
        v[:, 0] = np.rint(before * factor)
        n[:, 1:] = np.rint(n[:, 1:] * factor[:, None])
        v[:, _I["largest_gap_s"]] /= factor
        return (before >= 2) & (curve > 0.2)
    left = 0.0 if cause == "outage" else rng.uniform(0.02, 0.4)
    keep = 1 - (1 - left) * (curve > 0)
    v[:, 0] = rng.binomial(before.astype(np.int64), keep)
    n *= np.where(before > 0, v[:, 0] / np.maximum(before, 1), 1.0)[:, None]
    gone = v[:, 0] == 0
    gap = v[:, _I["largest_gap_s"]].copy()
    v[gone, 1:] = np.nan
    n[gone, 1:] = 0.0
    v[:, _I["largest_gap_s"]] = np.where(gone, np.nanmax(np.append(gap, 1.0)), gap / np.maximum(keep, 0.05))
    return (before > 0) & (curve > 0) & (v[:, 0] < before)


def _shares(cause: str, v: Float64, n: Float64, curve: Float64, rng: np.random.Generator) -> Bool:
    share = _log_uniform(rng, 0.05, 1.0) * curve
    trials = n[:, _I[_SHARES[cause][0]]]
    extra = rng.binomial(np.maximum(trials, 0).astype(np.int64), np.clip(share, 0, 1))
    part = np.where(trials > 0, extra / np.maximum(trials, 1), 0.0)
    for name in _SHARES[cause]:
        v[:, _I[name]] = np.minimum(v[:, _I[name]] + part, 1.0)
    if cause == "empty":
        for name in ("output_tokens_mean",):
            v[:, _I[name]] *= 1 - part
        v[:, _I["output_tokens_log_mean"]] *= 1 - part
    elif cause == "runaway":
        v[:, _I["output_tokens_mean"]] *= 1 + 2 * part
        v[:, _I["output_tokens_log_mean"]] += part
    return extra > 0


def _levels(cause: str, v: Float64, n: Float64, curve: Float64, rng: np.random.Generator) -> Bool:
    name = {"confidence": "confidence_mean", "accuracy": "accuracy", "gpu": "gpu_util_mean"}[cause]
    column = _I[name]
    present = n[:, column] > 0
    if cause == "accuracy":
        trials = n[:, column].astype(np.int64)
        right = np.rint(np.nan_to_num(v[:, column]) * trials).astype(np.int64)
        wrong = rng.binomial(np.maximum(right, 0), rng.uniform(0.15, 0.9) * curve)
        v[:, column] = np.where(present, (right - wrong) / np.maximum(trials, 1), v[:, column])
        return wrong > 0
    if cause == "confidence":
        v[:, column] = np.clip(v[:, column] - _log_uniform(rng, 0.04, 0.4) * curve, 0, 1)
    else:
        v[:, column] = np.clip(v[:, column] * np.exp(np.log(_log_uniform(rng, 0.05, 0.6)) * curve), 0, 1)
    return present & (curve > 0.2)
