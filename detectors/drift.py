"""Has the traffic changed so much that the models should be trained again?

Compares the distribution of every published feature in recent windows with that in the windows trained on
by the population stability index (Siddiqi 2006: below 0.1 stable, above 0.25 shifted), per series, with
bins at the deciles of the reference. A feature has drifted if it has shifted in many series at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detectors.types import FEATURES, Float64

SHIFTED = 0.25
_BINS = 10
_MIN_WINDOWS = 200
_SERIES_SHARE = 0.3  # of series, beyond which a shifted feature counts as drift
_PRIOR = 0.5  # windows added to every bin, so that empty bins are finite


@dataclass(frozen=True, slots=True)
class Drift:
    """The answer: whether to train again, why, and the index per feature (median over the series)."""

    drifted: bool
    reason: str  # "stable" | "drift" | "too_few_windows"
    index: dict[str, float]


def stability_index(reference: Float64, recent: Float64) -> float:
    """Population stability index of two samples [n], [k]; NaN entries are left out; NaN for short samples."""
    reference, recent = reference[np.isfinite(reference)], recent[np.isfinite(recent)]
    if min(len(reference), len(recent)) < _MIN_WINDOWS:
        return float("nan")
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = len(edges) + 1
    shares = []
    for sample in (reference, recent):
        counts = np.bincount(np.searchsorted(edges, sample, side="right"), minlength=bins) + _PRIOR
        shares.append(counts / counts.sum())
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def judge(reference: Sequence[Float64], recent: Sequence[Float64]) -> Drift:
    """reference, recent: per series values [n, statistics], in the same order of series -> the verdict."""
    index: dict[str, float] = {}
    shifted: list[str] = []
    for column, name in enumerate(FEATURES):
        found = np.array(
            [stability_index(a[:, column], b[:, column]) for a, b in zip(reference, recent, strict=True)]
        )
        found = found[np.isfinite(found)]
        if not len(found):
            continue
        index[name] = float(np.median(found))
        if (found > SHIFTED).mean() > _SERIES_SHARE:
            shifted.append(name)
    if not index:
        return Drift(False, "too_few_windows", index)
    return Drift(bool(shifted), "drift" if shifted else "stable", index)
