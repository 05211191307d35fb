"""Windows that hold records of two versions, the one against the other: see `detectors.versions`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detectors.types import Float64
from detectors.versions import (
    LATENCY_GIVEN_TOKENS,
    MAX_SLOPE,
    METRICS,
    MIN_RECORDS,
    PLACE,
    Difference,
    two_sided_p,
)

Int8 = npt.NDArray[np.int8]
MIN_PAIRED_WINDOWS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Records [n] of one version in one window; NaN and -1 = absent."""

    latency_ms: Float64
    ttft_ms: Float64
    input_tokens: Float64
    output_tokens: Float64
    confidence: Float64
    is_error: Int8
    truncated: Int8
    correct: Int8

    def __len__(self) -> int:
        return len(self.latency_ms)


_SUMS = 8  # w d, w^2 var, w^2 d^2, w^2 d, w^2, w, windows, records of the new version
_SHOWN = 2  # value of the old and of the new version, times the new one's records
_BINS_PER_OCTAVE = 16
_BINS = 40 * _BINS_PER_OCTAVE  # from 2^-10 ms on


@dataclass(slots=True, eq=False)
class Paired:
    """Evidence of windows that hold both versions; its size does not depend on how many there were."""

    sums: Float64 = field(default_factory=lambda: np.zeros((len(METRICS), _SUMS)))
    shown: Float64 = field(default_factory=lambda: np.zeros((len(METRICS), _SHOWN)))
    normal: Float64 = field(default_factory=lambda: np.zeros(5))  # x'x (3) and x'y (2) of ln latency
    old_latency: Float64 = field(default_factory=lambda: np.zeros(_BINS))  # weighed as the new one's windows
    new_latency: Float64 = field(default_factory=lambda: np.zeros(_BINS))

    def add(self, old: Records, new: Records) -> None:
        """One more window."""
        if not len(old) or not len(new):
            return
        for name, a, b in self._ranked(old, new):
            self._add_ranks(PLACE[name], a, b)
        for name, before, after in (
            ("error_rate", old.is_error, new.is_error),
            ("empty_output_rate", _empty(old), _empty(new)),
            ("max_output_rate", old.truncated, new.truncated),
            ("accuracy", old.correct, new.correct),
        ):
            old_hits, new_hits = (side[side >= 0].astype(float) for side in (before, after))
            if self._add_table(PLACE[name], old_hits, new_hits):
                self.shown[PLACE[name]] += len(new_hits) * np.array([old_hits.mean(), new_hits.mean()])
        self._add_tail(old.latency_ms, new.latency_ms)

    def differences(self) -> list[Difference]:
        """Every metric that enough records of both versions carry."""
        found = []
        for m, metric in enumerate(METRICS):
            top, model, square, cross, weights2, weights, windows, records = self.sums[m].tolist()
            if windows < MIN_PAIRED_WINDOWS or records < MIN_RECORDS or weights <= 0:
                continue
            mean = top / weights
            scatter = (square - 2 * mean * cross + mean**2 * weights2) * windows / (windows - 1)
            variance = max(model, scatter)
            less = 0.5 if metric.kind == "share" or metric.name == "latency_p95_ms" else 0.0
            z = max(abs(top) - less, 0.0) / math.sqrt(variance) if variance > 0 else 0.0
            old, new = (self.shown[m] / records).tolist()
            if metric.name == "latency_p95_ms":
                old, new = _p95(self.old_latency), _p95(self.new_latency)
            elif metric.name == LATENCY_GIVEN_TOKENS:
                old, new = 1.0, math.exp(new - old)
            elif metric.kind == "log":
                old, new = math.exp(old), math.exp(new)
            found.append(Difference(metric.name, old, new, two_sided_p(z, max(windows - 1, 1)), int(records)))
        return found

    def _ranked(self, old: Records, new: Records) -> list[tuple[str, Float64, Float64]]:
        slopes = self._slopes(old, new)
        given = [_log(r.latency_ms) - _lengths(r) @ slopes for r in (old, new)]
        return [
            (LATENCY_GIVEN_TOKENS, given[0], given[1]),
            ("ttft_p50_ms", _log(old.ttft_ms), _log(new.ttft_ms)),
            ("output_tokens_mean", np.log1p(old.output_tokens), np.log1p(new.output_tokens)),
            ("confidence_mean", old.confidence, new.confidence),
        ]

    def _slopes(self, old: Records, new: Records) -> Float64:
        """[2] of ln latency over ln input and ln output, from all windows so far, inside each version."""
        for records in (old, new):
            x, y = _lengths(records), _log(records.latency_ms)
            known = np.isfinite(y)
            if known.sum() > 2:
                x, y = x[known] - x[known].mean(axis=0), y[known] - y[known].mean()
                (a, b), (_, c) = (x.T @ x).tolist()
                self.normal += np.array([a, b, c, *(x.T @ y).tolist()])
        a, b, c, u, v = self.normal.tolist()
        ridge = 1e-3 * (a + c) + 1e-9
        found = np.linalg.solve([[a + ridge, b], [b, c + ridge]], [u, v])
        return np.asarray(np.clip(found, 0.0, MAX_SLOPE))

    def _add_ranks(self, m: int, old: Float64, new: Float64) -> None:
        old, new = old[np.isfinite(old)], new[np.isfinite(new)]
        if not len(old) or not len(new):
            return
        both = np.concatenate([old, new])
        _, place, ties = np.unique(both, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(ties) - (ties - 1) / 2.0)[place.reshape(-1)]
        pairs, n = len(old) * len(new), len(both)
        above = (ranks[len(old) :].sum() - len(new) * (len(new) + 1) / 2) / pairs
        variance = (n + 1 - float((ties**3 - ties).sum()) / max(n * (n - 1), 1)) / (12 * pairs)
        self._add(m, float(above) - 0.5, variance, pairs / (n + 1), len(new))
        self.shown[m] += len(new) * np.array([old.mean(), new.mean()])

    def _add_table(self, m: int, old: Float64, new: Float64) -> bool:
        """Two shares of one window; True where there is something to compare."""
        a, b = len(old), len(new)
        if not a or not b:
            return False
        n, share = a + b, (old.sum() + new.sum()) / (a + b)
        weight = a * b / n  # Mantel and Haenszel's, under which w d is what b has beyond its expected hits
        variance = share * (1 - share) * n * n / (max(n - 1, 1) * a * b)
        self._add(m, float(new.mean() - old.mean()), float(variance), weight, b)
        return True

    def _add_tail(self, old_ms: Float64, new_ms: Float64) -> None:
        """The share of slow requests: those beyond the old version's p95 so far."""
        old_ms, new_ms = old_ms[np.isfinite(old_ms)], new_ms[np.isfinite(new_ms)]
        if not len(old_ms) or not len(new_ms):
            return
        self.old_latency += _histogram(old_ms) * (len(new_ms) / len(old_ms))
        self.new_latency += _histogram(new_ms)
        limit = _p95(self.old_latency)
        slow = (np.asarray(ms > limit, np.float64) for ms in (old_ms, new_ms))
        self._add_table(PLACE["latency_p95_ms"], *slow)

    def _add(self, m: int, d: float, variance: float, weight: float, records: int) -> None:
        w2 = weight**2
        self.sums[m] += [weight * d, w2 * variance, w2 * d * d, w2 * d, w2, weight, 1.0, records]

    def to_arrays(self) -> list[bytes]:
        """Exact and compact: see `from_arrays`."""
        parts = [p.astype("<f8").tobytes() for p in (self.sums, self.shown, self.normal)]
        for latency in (self.old_latency, self.new_latency):
            at = np.flatnonzero(latency)
            parts += [at.astype("<u2").tobytes(), latency[at].astype("<f8").tobytes()]
        return parts

    @staticmethod
    def from_arrays(parts: Sequence[bytes]) -> Paired:
        """Raises ValueError for anything that `to_arrays` did not write."""
        if len(parts) != 7:
            raise ValueError("not paired evidence")
        made = Paired()
        for array, stored in zip((made.sums, made.shown, made.normal), parts[:3], strict=True):
            array[...] = np.frombuffer(stored, "<f8").reshape(array.shape)
        for latency, at, held in (
            (made.old_latency, parts[3], parts[4]),
            (made.new_latency, parts[5], parts[6]),
        ):
            latency[np.frombuffer(at, "<u2")] = np.frombuffer(held, "<f8")
        return made


def _log(x: Float64) -> Float64:
    return np.asarray(np.log(np.maximum(x, 1e-3)))


def _lengths(records: Records) -> Float64:
    """[n, 2]: ln(1 + tokens) of input and output, 0 where absent."""
    return np.stack(
        [np.nan_to_num(np.log1p(records.input_tokens)), np.nan_to_num(np.log1p(records.output_tokens))],
        axis=1,
    )


def _empty(records: Records) -> Int8:
    known = np.isfinite(records.output_tokens)
    return np.where(known, records.output_tokens == 0, -1).astype(np.int8)


def _histogram(ms: Float64) -> Float64:
    place = np.floor(_BINS_PER_OCTAVE * (np.log2(np.maximum(ms, 2.0**-10)) + 10)).astype(np.int64)
    return np.bincount(np.clip(place, 0, _BINS - 1), minlength=_BINS).astype(float)


def _p95(histogram: Float64) -> float:
    """The middle of the bin that holds the 95th percentile, ms."""
    seen = np.cumsum(histogram)
    at = int(np.searchsorted(seen, 0.95 * seen[-1]))
    return float(2.0 ** ((at + 0.5) / _BINS_PER_OCTAVE - 10))
