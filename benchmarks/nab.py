"""NAB's scoring, from its description: Lavin & Ahmad, "Evaluating real-time anomaly detection algorithms:
the Numenta Anomaly Benchmark" (ICMLA 2015).

A detection inside an anomaly window earns the more the earlier it comes, once per window; a window without
a detection costs, and so does every detection outside, little just behind a window and fully elsewhere.
One threshold is chosen for the whole corpus. 0 = a detector that never fires, 100 = a perfect one.

    python -m benchmarks.nab DATA SCORES     (DATA holds data/ and labels/, SCORES what evaluate wrote)
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a hit, a false alarm and a miss weigh."""

    name: str
    hit: float
    false_alarm: float
    miss: float


PROFILES = (
    Profile("standard", 1.0, 0.11, 1.0),
    Profile("reward_low_FP_rate", 1.0, 0.22, 1.0),
    Profile("reward_low_FN_rate", 1.0, 0.11, 2.0),
)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The scores of one file and its labelled windows as row numbers, first and last, both included."""

    name: str
    score: Array  # [n]
    windows: list[tuple[int, int]]


def probation_rows(rows: int) -> int:
    """The leading rows on which nothing counts: 15 %, of at most 5,000 rows."""
    return math.floor(0.15 * min(rows, 5_000))


def position_weight(position: float) -> float:
    """Scaled sigmoid: near +1 at the start of a window (-1), 0 at its end (0), -1 far behind it."""
    if position > 3.0:
        return -1.0
    return 2.0 / (1.0 + math.exp(5.0 * position)) - 1.0


def row_weights(rows: int, windows: list[tuple[int, int]]) -> tuple[Array, npt.NDArray[np.int_]]:
    """Per row what a detection there is worth before costs (hits scaled to at most 1), and the number of
    its window or -1. Rows of the probation are worth 0."""
    weight, member = np.full(rows, -1.0), np.full(rows, -1)
    best = position_weight(-1.0)
    for k, (first, last) in enumerate(windows):
        width = last - first + 1
        until = windows[k + 1][0] if k + 1 < len(windows) else rows
        for i in range(first, last + 1):
            weight[i], member[i] = position_weight(-(last - i + 1) / width) / best, k
        for i in range(last + 1, until):
            weight[i] = position_weight((i - last) / (width - 1)) if width > 1 else -1.0
    probation = probation_rows(rows)
    weight[:probation], member[:probation] = 0.0, -1
    return weight, member


def sweep(series: list[Series], profile: Profile) -> tuple[float, float]:
    """-> (normalised score at the best threshold, that threshold). A row is a detection if score >= it."""
    changes: list[tuple[float, float]] = []  # (score at which it happens, gain in raw score)
    total = 0
    for one in series:
        weight, member = row_weights(len(one.score), one.windows)
        total += len(one.windows)
        outside = (member < 0) & (np.arange(len(weight)) >= probation_rows(len(weight)))
        changes += zip(one.score[outside], weight[outside] * profile.false_alarm, strict=True)
        for k in range(len(one.windows)):
            rows = np.flatnonzero(member == k)
            best = -profile.miss
            for i in rows[np.argsort(-one.score[rows], kind="stable")]:
                worth = weight[i] * profile.hit
                if worth > best:
                    changes.append((one.score[i], worth - best))
                    best = worth
    at = np.array([c[0] for c in changes])
    order = np.argsort(-at, kind="stable")
    raw = -profile.miss * total + np.cumsum(np.array([c[1] for c in changes])[order])
    ends = np.append(np.flatnonzero(np.diff(at[order])), len(order) - 1)
    lowest = -profile.miss * total
    perfect = profile.hit * total
    best_end = ends[int(np.argmax(raw[ends]))]
    score, threshold = float(raw[best_end]), float(at[order][best_end])
    if score < lowest:
        score, threshold = lowest, math.inf
    return 100.0 * (score - lowest) / (perfect - lowest), threshold


def read_windows(data: Path) -> dict[str, list[tuple[int, int]]]:
    """category/file -> windows as row numbers."""
    labels = json.loads((data / "labels" / "combined_windows.json").read_text(encoding="utf-8"))
    found = {}
    for name, spans in labels.items():
        times = pd.to_datetime(pd.read_csv(data / "data" / name)["timestamp"]).to_numpy()
        found[name] = [
            (
                int(np.searchsorted(times, np.datetime64(first), "left")),
                int(np.searchsorted(times, np.datetime64(last), "right")) - 1,
            )
            for first, last in spans
        ]
    return found


def evaluate(data: Path, scores: Path) -> dict[str, float]:
    """Profile -> normalised score of the files that `inferwatch evaluate nab` wrote."""
    series = [
        Series(name, pd.read_csv(scores / name)["score"].to_numpy(dtype=float), windows)
        for name, windows in sorted(read_windows(data).items())
    ]
    return {profile.name: sweep(series, profile)[0] for profile in PROFILES}


if __name__ == "__main__":
    for profile_name, value in evaluate(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{profile_name:20} {value:6.2f}")
