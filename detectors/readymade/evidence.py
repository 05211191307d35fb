"""Errors of many metrics -> one number per window; numbers over time -> score and alarm. All causal."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from detectors.types import Bool, Float64

_ERROR_LIMIT = 30.0
_SHRINKAGE = 0.5


@njit(cache=True)
def running_mean(values: Float64, span: float) -> Float64:
    """Exponentially weighted mean of rows so far, [n, C]; weights start out normalised (no cold start)."""
    out = np.empty_like(values)
    keep = 1.0 - 2.0 / (span + 1.0)
    total, weight = np.zeros(values.shape[1]), 0.0
    for i in range(len(values)):
        weight = weight * keep + 1.0
        for j in range(values.shape[1]):
            total[j] = total[j] * keep + values[i, j]
            out[i, j] = total[j] / weight
    return out


def smooth(evidence: Float64, span: float) -> Float64:
    """The same for one stream, [n]."""
    out: Float64 = running_mean(evidence[:, None], span)[:, 0]
    return out


def lagged(values: Float64, steps: int) -> Float64:
    """values [n, C] `steps` rows earlier; the first row stands in for what lies before it."""
    return np.concatenate([np.repeat(values[:1], steps, axis=0), values[:-steps]])[: len(values)]


def carried(values: Float64, start: float) -> Float64:
    """values [n] with the last finite one in the place of each that is not, `start` before the first."""
    known = np.isfinite(values)
    newest = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return np.where(newest >= 0, values[np.maximum(newest, 0)], start)


def robust_errors(errors: Float64, rows: int, floor: float = 1e-3) -> Float64:
    """errors [n, C] in units of what is usual in the first `rows` rows, between -30 and 30.

    `floor` is the least unit: with 1e-3 of a metric's range the smallest stirring of a metric that hardly
    ever moved counts, with 0.02 it does not.
    """
    size = np.abs(errors[:rows])
    usual = np.maximum(1.5 * np.median(size, axis=0), 0.3 * _root_mean_square(size, axis=0)) + floor
    return np.clip(errors / usual, -_ERROR_LIMIT, _ERROR_LIMIT)


def _root_mean_square(errors: Float64, axis: int) -> Float64:
    out: Float64 = np.sqrt(np.mean(errors**2, axis=axis))
    return out


def whitened(errors: Float64, rows: int) -> Float64:
    """errors [n, C] without what they share in the first `rows` rows, each of unit variance there.

    Metrics that err together count once, and an error that breaks their company counts more. Symmetric
    (Mahalanobis) whitening, so the order of the metrics does not matter; the covariance is shrunk halfway
    to its diagonal, and a metric without errors keeps a little variance.
    """
    deviation = errors - errors[:rows].mean(axis=0)
    covariance = deviation[:rows].T @ deviation[:rows] / rows
    variance = np.diag(covariance)
    shrunk = (1.0 - _SHRINKAGE) * covariance + np.diag(_SHRINKAGE * variance + 1e-3 * variance.mean() + 1e-12)
    sizes, axes = np.linalg.eigh(shrunk)
    turned = (axes / np.sqrt(sizes)) @ axes.T
    out: Float64 = np.einsum("ij,jk->ik", deviation, turned)  # a row's bits do not depend on rows behind it
    return out


def many(errors: Float64) -> Float64:
    """[n, C] -> [n]: rises when many metrics are a little off."""
    out: Float64 = np.log1p(np.abs(errors).mean(axis=1))
    return out


def few(errors: Float64) -> Float64:
    """[n, C] -> [n]: rises when a few metrics are far off."""
    return _root_mean_square(errors, axis=1)


def centred(stream: Float64, rows: int) -> Float64:
    """Robust z of a stream, [n], by the median and quartiles of the first `rows` rows."""
    low, middle, high = np.quantile(stream[:rows], [0.25, 0.5, 0.75])
    out: Float64 = (stream - middle) / (high - low + 1e-9)
    return out


def signed_square(z: Float64) -> Float64:
    """z |z|: one strong witness outweighs several indifferent ones."""
    out: Float64 = z * np.abs(z)
    return out


def signed_root(evidence: Float64) -> Float64:
    """The inverse: its tail is near to exponential where that of the squares is heavier."""
    out: Float64 = np.sign(evidence) * np.sqrt(np.abs(evidence))
    return out


def excess(evidence: Float64, rows: int, refresh: int = 200) -> Float64:
    """How far each value lies above the 98 % quantile of the `rows` values before it, [n].

    The unit is the mean excess over that quantile, so that for an exponential tail a value of x is
    reached by 2 % * exp(-x) of normal windows. The quantile follows drift: it is taken anew every
    `refresh` rows from the latest `rows` values; the first `rows` are measured against themselves.
    """
    out = np.empty_like(evidence)
    for start in (0, *range(rows, len(evidence), refresh)):
        end = rows if start == 0 else min(start + refresh, len(evidence))
        past = evidence[:rows] if start == 0 else evidence[start - rows : start]
        edge = np.quantile(past, 0.98)
        over = past[past > edge] - edge
        unit = max(float(over.mean()) if len(over) else 0.0, 1e-9)
        out[start:end] = (evidence[start:end] - edge) / unit
    return out


@njit(cache=True)
def held_alarm(excess_over: Float64, fire: float, calm: float, hold: int, at_most: int) -> Bool:
    """On at `fire`; off after `hold` rows in a row below `calm` or `at_most` rows without a new fire."""
    out = np.zeros(len(excess_over), np.bool_)
    on, quiet, age = False, 0, 0
    for i in range(len(excess_over)):
        if excess_over[i] >= fire:
            on, quiet, age = True, 0, 0
        elif on:
            quiet = 0 if excess_over[i] >= calm else quiet + 1
            age += 1
            if quiet > hold or age > at_most:
                on = False
        out[i] = on
    return out


def fire_level(rows_per_1000: float) -> float:
    """The `excess` that `rows_per_1000` of 1,000 normal rows reach; at most 20."""
    return math.log(0.02 * 1_000 / rows_per_1000)
