"""Scores and windows -> the rows that the database keeps of them."""

from __future__ import annotations

from collections.abc import Sequence

from detectors.pack import pack_rows
from detectors.types import FEATURES, ScoreBatch, WindowBatch
from monitor.windows import AmendedWindow
from storage.types import RevisedWindow, ScoredWindows


def scored_rows(batch: WindowBatch, scores: ScoreBatch, sketches: Sequence[bytes | None]) -> ScoredWindows:
    """What the database keeps of scored windows."""
    names = list(batch.metrics)
    return ScoredWindows(
        window_start_ms=batch.window_start_ms,
        window_end_ms=batch.window_start_ms + batch.window_ms,
        series=batch.series,
        features=batch.values[:, : len(FEATURES)],
        metrics=[
            {n: float(batch.metrics[n][0][row]) for n in names if batch.metrics[n][1][row] > 0} or None
            for row in range(len(batch))
        ]
        if names
        else [None] * len(batch),
        statistics=pack_rows(batch.values, batch.counts),
        sketches=sketches,
        score=scores.score,
        gbdt_score=scores.gbdt_score,
        lstm_score=scores.lstm_score,
        tail_probability=scores.tail_probability,
        is_anomalous=scores.is_anomalous,
    )


def revised_row(step: AmendedWindow, scores: ScoreBatch) -> RevisedWindow:
    """What the database keeps of one amended window."""
    row = scored_rows(step.batch, scores, [step.sketch])
    return RevisedWindow(
        series=row.series[0],
        window_start_ms=row.window_start_ms,
        features=row.features[0],
        metrics=row.metrics[0],
        statistics=row.statistics[0],
        sketch=step.sketch,
        score=float(row.score[0]),
        gbdt_score=float(row.gbdt_score[0]),
        lstm_score=float(row.lstm_score[0]),
        tail_probability=float(row.tail_probability[0]),
        is_anomalous=bool(row.is_anomalous[0]),
    )
