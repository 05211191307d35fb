"""The plain floor: LightGBM on simple baseline-relative features, trained on the workloads of others.

Per published feature the mean of the newest 3, 10 and 40 windows against the mean of the day before, in
standard deviations of that day; the same times the root of the requests behind it; the mean of two hours;
and the newest ten windows against the same time yesterday. No calibration, no memory, no LSTM: what is
better than this on the same judge is what the detectors of the package bring.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.fold import Bool, Float64
from benchmarks.splits import HELD_OUT_KINDS
from benchmarks.suites import WINDOW_MS, Suite
from detectors.types import FEATURES

Float32 = npt.NDArray[np.float32]
DAY_WINDOWS = 1_440
SPANS = (3, 10, 40)
TWO_HOURS = 120
MIN_WINDOWS = 120
NORMAL_SHARE = 0.25
ROUNDS = 300
AFTER_WINDOWS = 40  # behind a fault, whose means still hold it: neither normal nor a fault
SHARES = frozenset(
    ("error_rate", "empty_output_rate", "max_output_rate", "gpu_util_mean", "confidence_mean", "accuracy")
)


def features(suite: Suite, row: int) -> Float32:
    """[w, 8 * len(FEATURES)] of one series; NaN where there is too little to say it."""
    raw = np.asarray(suite.values[row, :, : len(FEATURES)], float)
    counts = pd.DataFrame(np.asarray(suite.counts[row, :, : len(FEATURES)], float))
    shares = np.array([name in SHARES for name in FEATURES])
    x = pd.DataFrame(np.where(shares, np.arcsin(np.sqrt(np.clip(raw, 0, 1))), np.log1p(np.maximum(raw, 0.0))))
    day = x.rolling(DAY_WINDOWS, min_periods=MIN_WINDOWS)
    mean, spread = day.mean().shift(SPANS[-1]), day.std().shift(SPANS[-1]) + 1e-3
    columns: list[Float64] = []
    for span in SPANS:
        recent = x.rolling(span, min_periods=1).mean()
        z = ((recent - mean) / spread).to_numpy()
        evidence = np.sqrt(counts.rolling(span, min_periods=1).sum().to_numpy())
        columns += [z, z * evidence]
    columns.append(((x.rolling(TWO_HOURS, min_periods=10).mean() - mean) / spread).to_numpy())
    ten = x.rolling(SPANS[1], min_periods=1).mean()
    columns.append(((ten - ten.shift(DAY_WINDOWS)) / spread).to_numpy())
    return np.concatenate(columns, axis=1).astype(np.float32)


def labels(suite: Suite, row: int) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """[w]: 1 in a visible fault, 0 normal, -1 neither (held-out kinds, invisible ones, just after one)."""
    found = np.zeros(len(suite.start_ms), np.int8)
    for item in suite.of(suite.series[row]):
        if item.benign:
            continue
        end_ms = item.end_ms + AFTER_WINDOWS * WINDOW_MS
        found[_inside(suite, item.start_ms, end_ms) & (found == 0)] = -1
        if item.visible and item.kind not in HELD_OUT_KINDS:
            found[_inside(suite, item.visible_from_ms, item.end_ms)] = 1
    return found


def _inside(suite: Suite, from_ms: int, to_ms: int) -> Bool:
    return (suite.start_ms + WINDOW_MS > from_ms) & (suite.start_ms < to_ms)


class PlainFloor:
    """Fitted trees; `score` gives log-odds per window."""

    def __init__(self, train: Suite, seed: int = 1) -> None:
        import lightgbm

        rng = np.random.default_rng(seed)
        rows, truth = [], []
        for row in range(len(train.series)):
            label = labels(train, row)
            normal = (label == 0) & (rng.random(len(label)) < NORMAL_SHARE)
            keep = (label == 1) | normal
            keep[:MIN_WINDOWS] = False
            rows.append(features(train, row)[keep])
            truth.append(label[keep])
        y = np.concatenate(truth)
        options = {
            "objective": "binary",
            "is_unbalance": True,
            "learning_rate": 0.05,
            "num_leaves": 31,
            "min_data_in_leaf": 200,
            "feature_fraction": 0.5,
            "lambda_l2": 5.0,
            "seed": seed,
            "deterministic": True,
            "num_threads": 2,
            "verbose": -1,
        }
        data = lightgbm.Dataset(np.concatenate(rows), y, free_raw_data=True)
        self._trees = lightgbm.train(options, data, num_boost_round=ROUNDS)

    def score(self, suite: Suite) -> Float64:
        """[m, w], higher = more anomalous."""
        found = [
            np.asarray(self._trees.predict(features(suite, row), raw_score=True, num_threads=2))
            for row in range(len(suite.series))
        ]
        return np.stack(found).astype(float)
