"""Detectors that others use, on the same windows: EWMA z-score, isolation forest, half-space trees."""

from __future__ import annotations

import importlib.util

import numpy as np

from benchmarks.fold import Float64
from benchmarks.suites import Suite
from detectors.types import FEATURES

HALF_LIFE_WINDOWS = 720.0
WARM_UP_WINDOWS = 1_440


def inputs(suite: Suite, row: int) -> Float64:
    """[w, f]: the published features of one series, heavy tails folded, gaps filled with the last value."""
    raw = np.asarray(suite.values[row, :, : len(FEATURES)], float)
    folded: Float64 = np.sign(raw) * np.log1p(np.abs(raw))
    known = np.isfinite(folded)
    last = np.maximum.accumulate(np.where(known, np.arange(len(folded))[:, None], 0), axis=0)
    filled = np.take_along_axis(folded, last, axis=0)
    return np.nan_to_num(filled[:, known.any(axis=0)])


def ewma(suite: Suite) -> Float64:
    """Largest |z| of any feature against an exponentially weighted mean and variance."""
    alpha = 1 - 0.5 ** (1 / HALF_LIFE_WINDOWS)
    scores = np.zeros(suite.values.shape[:2])
    for row in range(len(suite.series)):
        x = inputs(suite, row)
        mean, variance = x[:60].mean(axis=0), x[:60].var(axis=0) + 1e-4
        for t in range(len(x)):
            apart = x[t] - mean
            scores[row, t] = np.max(np.abs(apart) / np.sqrt(variance + 1e-4), initial=0.0)
            mean += alpha * apart
            variance = (1 - alpha) * (variance + alpha * apart**2)
    return scores


def isolation_forest(suite: Suite) -> Float64:
    """scikit-learn's, fitted on each series' first day."""
    from sklearn.ensemble import IsolationForest

    scores = np.zeros(suite.values.shape[:2])
    for row in range(len(suite.series)):
        x = inputs(suite, row)
        model = IsolationForest(n_estimators=100, random_state=1).fit(x[:WARM_UP_WINDOWS])
        scores[row] = -model.score_samples(x)
    return scores


def half_space_trees(suite: Suite) -> Float64:
    """river's, learning as it goes, on features scaled to [0, 1] by each series' first day."""
    from river.anomaly import HalfSpaceTrees  # type: ignore[import-not-found,unused-ignore]  # optional

    scores = np.zeros(suite.values.shape[:2])
    for row in range(len(suite.series)):
        x = inputs(suite, row)
        low, high = x[:WARM_UP_WINDOWS].min(axis=0), x[:WARM_UP_WINDOWS].max(axis=0)
        scaled = np.clip((x - low) / np.maximum(high - low, 1e-9) * 0.5 + 0.25, 0, 1)
        model = HalfSpaceTrees(n_trees=10, height=8, window_size=250, seed=1)
        names = list(range(x.shape[1]))
        for t, values in enumerate(scaled.tolist()):
            named = dict(zip(names, values, strict=True))
            scores[row, t] = model.score_one(named)
            model.learn_one(named)
    return scores


def river_is_installed() -> bool:
    return importlib.util.find_spec("river") is not None
