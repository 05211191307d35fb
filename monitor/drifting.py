"""Compares the newest windows with those trained on, at the event times of monitor.schedule."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import structlog
from sqlalchemy import Engine

from detectors import drift
from monitor import metrics
from monitor.clock import rfc3339
from monitor.schedule import DAY_MS, Comparison, Span
from storage.drift import DriftRow, calm_windows, known_series, remember

log = structlog.get_logger()

MAX_SERIES, MAX_TRIED = 40, 200
RECENT_WINDOWS = 480  # per series; the index of two samples of this size is 0.04 by chance
REFERENCE_WINDOWS = 7 * 240
SCORE = drift.COLUMNS.index("score")


@dataclass(slots=True)
class DriftWatch:
    """Makes verdicts; remembers the reference, which stays the same from one training to the next."""

    engine: Engine
    window_ms: int
    _of: tuple[Span, Span | None] | None = None
    _references: dict[int, drift.Reference | None] = field(default_factory=dict)

    def check(self, at_ms: int, comparison: Comparison) -> DriftRow:
        """Compare, store and show the verdict of event time `at_ms`; returns the stored one."""
        references: dict[str, drift.Reference] = {}
        recent: dict[str, drift.Sample] = {}
        if self._of != (comparison.features, comparison.scores):
            self._of, self._references = (comparison.features, comparison.scores), {}
        for series_id, name in known_series(self.engine, comparison.recent[0])[:MAX_TRIED]:
            newest = self._sample(series_id, comparison.recent, RECENT_WINDOWS)
            if len(newest.values) < drift.MIN_WINDOWS:
                continue
            reference = self._reference(series_id, comparison)
            if reference is None:
                continue
            references[name], recent[name] = reference, newest
            if len(recent) == MAX_SERIES:
                break
        found = drift.judge(references, recent)
        row = DriftRow(
            checked_at_ms=at_ms,
            drifted=found.drifted,
            reason=found.reason,
            index={name: round(index, 4) for name, index in found.index.items()},
            shifted=list(found.shifted),
            series=len(recent),
            recent=comparison.recent,
            reference=comparison.features,
            trained_at_ms=comparison.trained_at_ms,
        )
        stored = remember(self.engine, row)
        show(stored)
        return stored

    def _reference(self, series_id: int, comparison: Comparison) -> drift.Reference | None:
        """The windows trained on; the scores are those of the model that was trained on them."""
        if series_id not in self._references:
            trained_on = self._sample(series_id, comparison.features, REFERENCE_WINDOWS)
            reference = None
            if len(trained_on.values) >= drift.MIN_WINDOWS:
                *columns, _ = drift.prepare(trained_on)
                score = None
                if comparison.scores is not None:
                    scored = self._sample(series_id, comparison.scores, RECENT_WINDOWS)
                    score = drift.prepare(scored)[SCORE]
                reference = (*columns, score)
            self._references[series_id] = reference
        return self._references[series_id]

    def _sample(self, series_id: int, span: Span, limit: int) -> drift.Sample:
        rows = calm_windows(self.engine, series_id, span, window_ms=self.window_ms, limit=limit)
        windows = np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(drift.COLUMNS))
        return drift.Sample(windows[:, 1:], ((windows[:, 0] - span[0]) // DAY_MS).astype(np.int64))


def show(row: DriftRow) -> None:
    """The verdict in the log and in the metrics."""
    for name, index in row.index.items():
        metrics.DRIFT_INDEX.labels(name).set(index)
    metrics.DRIFT_CHECKS.labels(row.reason).inc()
    worst = max(row.index, key=lambda name: row.index[name], default=None)
    tell = log.warning if row.drifted else log.info
    tell(
        "drift_checked",
        at=rfc3339(row.checked_at_ms),
        verdict=row.reason,
        shifted=row.shifted,
        series=row.series,
        largest=None if worst is None else f"{worst} {row.index[worst]:.2f}",
    )
