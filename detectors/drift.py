"""Has the traffic changed so much that the models should be trained again?

Compares the distribution of every published feature, and of the score, in recent windows with that in the
windows trained on by the population stability index (Siddiqi 2006: below 0.1 stable, above 0.25 shifted),
per series, with bins at the deciles of the reference. Where the reference has several days, a recent day
must also differ clearly more than any of these differs from the others: a service whose days are never
alike has not drifted on one more such day. A feature has drifted if it has shifted in many series at once
and in the same direction: levels of real services wander for days, but each its own way, so that the scatter
of the shifts over the series says how far their mean would lie from zero by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detectors.types import FEATURES, Float64, Int64
from detectors.versions import two_sided_p

COLUMNS: tuple[str, ...] = (*FEATURES, "score")
"""What is compared, in the order of the columns of a sample."""
SHIFTED = 0.25
MIN_WINDOWS = 200
_BINS = 10
_SERIES_SHARE = 0.3  # of series, beyond which a shifted feature counts as drift
_PRIOR = 0.5  # windows added to every bin, so that empty bins are finite
_CHANCE = 0.005  # per feature, that a shift in one direction over all series is none
_ENOUGH_SERIES = 4  # to tell a shift of all from series that wander
_BEYOND_USUAL = 1.5  # times the largest index of a day of the reference against the others
_ONE_DAY = 0.5  # index that means a shift where the reference is one day: two days are never alike


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Windows of one series: values [n, len(COLUMNS)], NaN = nothing measured; day [n], any numbering."""

    values: Float64
    day: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One feature of one series as it was: bins, shares of the windows in them, index that means a shift."""

    edges: Float64  # [bins - 1], ascending
    shares: Float64  # [bins], they sum to 1
    bar: float
    level: float  # mean of ln(1 + value)

    def shift(self, recent: Float64) -> float:
        """How much higher the level of recent values [k] without NaN is."""
        return _level(recent) - self.level

    def index(self, recent: Float64) -> float:
        """Population stability index of recent values [k] without NaN."""
        shares = _shares(recent, self.edges)
        return float(((shares - self.shares) * np.log(shares / self.shares)).sum())


Reference = tuple[Column | None, ...]
"""One entry per column; None = too few windows to compare with."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The answer: whether to train again, why, the index per feature (median over the series), the guilty."""

    drifted: bool
    reason: str  # "stable" | "drift" | "too_few_windows"
    index: dict[str, float]
    shifted: tuple[str, ...] = ()


def stability_index(reference: Float64, recent: Float64) -> float:
    """Population stability index of two samples [n], [k]; NaN entries are left out; NaN for short samples."""
    column = _prepare(reference)
    recent = recent[np.isfinite(recent)]
    if column is None or len(recent) < MIN_WINDOWS:
        return float("nan")
    return column.index(recent)


def prepare(reference: Sample) -> Reference:
    """What is kept of the windows of one series to compare later ones with."""
    return tuple(_prepare(values, reference.day) for values in reference.values.T)


def judge(reference: Mapping[str, Reference], recent: Mapping[str, Sample]) -> Drift:
    """References and recent windows by series, of those that have both -> the verdict."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for series in sorted(reference.keys() & recent.keys()):
        for name, column, values in zip(COLUMNS, reference[series], recent[series].values.T, strict=True):
            values = values[np.isfinite(values)]
            if column is not None and len(values) >= MIN_WINDOWS:
                entry = column.index(values), column.bar, column.shift(values)
                found.setdefault(name, []).append(entry)
    index = {name: float(np.median([i for i, _, _ in found[name]])) for name in COLUMNS if name in found}
    many = max((len(series) for series in found.values()), default=0) >= _ENOUGH_SERIES
    shifted = tuple(name for name in index if _shifted(found[name], many=many))
    if not index:
        return Drift(False, "too_few_windows", index)
    return Drift(bool(shifted), "drift" if shifted else "stable", index, shifted)


def _shifted(series: list[tuple[float, float, float]], *, many: bool) -> bool:
    """(index, bar, shift of the level) of one feature in all series -> whether it has drifted.

    Where there are `many` series, a feature that only a few of them have says nothing.
    """
    if not np.mean([index > bar for index, bar, _ in series]) > _SERIES_SHARE:
        return False
    if len(series) < _ENOUGH_SERIES:
        return not many
    return _by_chance([shift for _, _, shift in series]) <= _CHANCE


def _by_chance(shifts: list[float]) -> float:
    """Two-sided p of a mean shift like this one if each series had moved its own way (t-test)."""
    mean, error = float(np.mean(shifts)), float(np.std(shifts, ddof=1)) / np.sqrt(len(shifts))
    if error < 1e-9 * max(abs(mean), 1e-9):
        return float(mean == 0)
    return two_sided_p(mean / error, len(shifts) - 1)


def _level(values: Float64) -> float:
    return float(np.log1p(np.maximum(values, 0.0)).mean())


def _prepare(values: Float64, day: Int64 | None = None) -> Column | None:
    known = np.isfinite(values)
    values, day = values[known], None if day is None else day[known]
    if len(values) < MIN_WINDOWS:
        return None
    cuts = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
    once, repeats = np.unique(cuts, return_counts=True)
    edges = np.unique(np.concatenate([once, np.nextafter(once[repeats > 1], np.inf)]))
    bar = SHIFTED
    if day is not None:
        alone = len(np.unique(day)) == 1
        bar = _ONE_DAY if alone else max(SHIFTED, _BEYOND_USUAL * _usual(values, day))
    return Column(edges, _shares(values, edges), bar, _level(values))


def _usual(values: Float64, day: Int64) -> float:
    """The largest index of one day of the reference against its other days."""
    largest = 0.0
    for each in np.unique(day).tolist():
        mine, others = values[day == each], values[day != each]
        if len(mine) >= MIN_WINDOWS and (rest := _prepare(others)) is not None:
            largest = max(largest, rest.index(mine))
    return largest


def _shares(values: Float64, edges: Float64) -> Float64:
    """A value that makes up much of the reference has a bin of its own, so leaving it either way shows."""
    bins = np.searchsorted(edges, values, side="right")
    counts = np.bincount(bins, minlength=len(edges) + 1).astype(np.float64) + _PRIOR
    shares: Float64 = counts / counts.sum()
    return shares
