"""VUS-PR: area under the precision-recall curve, averaged over widths of a soft border around events.

Paparrizos et al., "Volume Under the Surface: a new accuracy evaluation measure for time-series anomaly
detection" (PVLDB 15(11), 2022). Conventions (250 thresholds, borders, counting of positives) follow the
`RangeAUC_volume_opt` of the tsb-ad package, against which this is checked to 1e-9; here each width costs
one cumulative sum instead of 250 passes.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
THRESHOLDS = 250


def events(labels: npt.NDArray[np.int_]) -> list[tuple[int, int]]:
    """Runs of ones as (first, last)."""
    edges = np.diff(np.concatenate([[0], (labels > 0).astype(int), [0]]))
    return list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1, strict=True))


def _merged(spans: list[tuple[int, int]], border: int, size: int) -> list[tuple[int, int]]:
    """Events widened by `border` on both sides; those that then touch become one."""
    wide, start = [], max(spans[0][0] - border, 0)
    for (_, end), (following, _) in itertools.pairwise(spans):
        if end + border < following - border:
            wide.append((start, end + border))
            start = following - border
    return [*wide, (start, min(spans[-1][1] + border, size - 1))]


def vus_pr(labels: npt.NDArray[np.int_], score: Array, window: int) -> float:
    """labels, score: [n]; window: the widest border, in steps. Returns a share in [0, 1]."""
    n, spans = len(score), events(labels)
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    picks = ranked[np.linspace(0, n - 1, THRESHOLDS).astype(int)]
    predicted = np.searchsorted(-ranked, -picks, side="right")  # how many reach each threshold
    positives, areas = float(np.sum(labels > 0)), []
    counted = np.zeros(n, bool)
    for first, last in _merged(spans, window // 2, n):
        counted[first : last + 1] = True
    inside = np.zeros(n, bool)
    for first, last in spans:
        inside[first : last + 1] = True
    for width in range(window + 1):
        soft = inside.astype(float)
        for first, last in spans:
            after = np.arange(last + 1, min(last + width // 2 + 1, n))
            soft[after] += np.sqrt(1 - (after - last) / max(width, 1))
            before = np.arange(max(first - width // 2, 0), first)
            soft[before] += np.sqrt(1 - (first - before) / max(width, 1))
        soft = np.minimum(soft, 1.0) * counted
        gained = np.concatenate([[0.0], np.cumsum(soft[order])])
        outside = np.concatenate([[0.0], np.cumsum((soft * ~inside)[order])])
        hits = gained[predicted]
        extended = outside[predicted] + float(np.sum(inside))
        peaks = np.array([score[a : b + 1].max() for a, b in _merged(spans, width // 2, n)])
        found = (peaks[None, :] >= picks[:, None]).mean(axis=1)
        recall = np.minimum(hits / ((positives + extended) / 2), 1.0) * found
        precision = hits / predicted
        areas.append(float(np.dot(np.diff(np.concatenate([[0.0], recall])), precision)))
    return float(np.mean(areas))


def window_of(rows: int) -> int:
    """The border width used throughout: min(100, n / 20)."""
    return min(100, rows // 20)
