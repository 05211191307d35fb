"""A plain scorer for tests of the pipeline: a running mean of p95 latency, and a threshold."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from detectors.base import SeriesStates
from detectors.types import STATISTIC_INDEX, Contribution, ScoreBatch, WindowBatch
from monitor.clock import ManualClock

LATENCY = STATISTIC_INDEX["latency_p95_ms"]
WARM_UP = 5


class PlainStates:
    """Per series: windows seen and the mean of ln(p95 latency)."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, float]] = {}

    def dump(self, series: str) -> bytes:
        return struct.pack("<qd", *self.rows[series])

    def dump_all(self, series: Sequence[str]) -> list[bytes]:
        return [self.dump(name) for name in series]

    def load(self, series: str, state: bytes) -> None:
        if len(state) != 16:
            raise ValueError("not a state of this scorer")
        self.rows[series] = struct.unpack("<qd", state)

    def drop(self, series: str) -> None:
        self.rows.pop(series, None)

    def __contains__(self, series: object) -> bool:
        return series in self.rows

    def __len__(self) -> int:
        return len(self.rows)


class PlainScorer:
    """Anomalous = p95 latency above three times what it was, or silence, after a few windows."""

    version = "plain-1"

    def new_states(self) -> PlainStates:
        return PlainStates()

    def score(self, batch: WindowBatch, states: SeriesStates) -> ScoreBatch:
        return self._score(batch, states, learn=True)

    def rescore(self, batch: WindowBatch, states: SeriesStates) -> ScoreBatch:
        return self._score(batch, states, learn=False)

    def _score(self, batch: WindowBatch, states: SeriesStates, *, learn: bool) -> ScoreBatch:
        assert isinstance(states, PlainStates)
        m = len(batch)
        score, seen = np.zeros(m), np.zeros(m, np.int64)
        explanations: list[tuple[Contribution, ...]] = []
        for row, series in enumerate(batch.series):
            count, mean = states.rows.get(series, (0, 0.0))
            latency = batch.values[row, LATENCY]
            known = not math.isnan(latency)
            ratio = (
                math.exp(math.log(latency) - mean)
                if known and count
                else (1.0 if known or not count else 9.0)
            )
            if count >= WARM_UP:
                score[row] = min(abs(math.log(ratio)) / math.log(9), 1.0)
            if learn:
                x = math.log(latency) if known else mean
                states.rows[series] = (count + 1, mean + (x - mean) / min(count + 1, 50))
            seen[row] = count + 1
            hot = score[row] > 0.5
            reason = Contribution(
                "latency_p95_ms", float(latency) if known else None, math.exp(mean), None, None, 1.0
            )
            explanations.append((reason,) if hot else ())
        anomalous = score > 0.5
        return ScoreBatch(
            score=score,
            gbdt_score=score,
            lstm_score=score,
            tail_probability=np.where(anomalous, 1e-6, 0.5),
            is_anomalous=anomalous,
            reason=["spike" if hot else "normal" for hot in anomalous.tolist()],
            windows_seen=seen,
            explanations=explanations,
        )


class SlowScorer(PlainScorer):
    """Takes a tenth of a second for the windows of one start."""

    clock: ManualClock

    def score(self, batch: WindowBatch, states: SeriesStates) -> ScoreBatch:
        self.clock.advance(100)
        return super().score(batch, states)
