"""Verdicts on drift as they are stored and shown: without SQLAlchemy, for commands that only read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.shown import Row, time_of
from storage.sql import Plain, Select, fetch

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    Source = Engine | Connection | Plain

KEY, AFTER_KEYS = "drift:", "drift;"  # ";" follows ":"
MAX_SHOWN = 10_000


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One comparison of recent windows with those trained on; spans are [start_ms, end_ms)."""

    checked_at_ms: int
    drifted: bool
    reason: str  # "stable" | "drift" | "too_few_windows"
    index: dict[str, float]  # feature, or "score" -> population stability index, median over the series
    shifted: list[str]
    series: int  # compared
    recent: tuple[int, int]
    reference: tuple[int, int]
    trained_at_ms: int | None  # of the training whose windows are the reference; None = the first windows


def row_of(value: str) -> DriftRow:
    known = json.loads(value)
    known["recent"], known["reference"] = tuple(known["recent"]), tuple(known["reference"])
    return DriftRow(**known)


def all_verdicts(source: Source, limit: int = MAX_SHOWN) -> list[DriftRow]:
    """Stored verdicts, newest first."""
    statement = (
        Select("value", "facts")
        .where("facts.key >= ?", KEY)
        .where("facts.key < ?", AFTER_KEYS)
        .ordered([("facts.key", True)])
    )
    return [row_of(found["value"]) for found in fetch(source, *statement.limited(limit))]


def shown(row: DriftRow) -> Row:
    """A verdict as people see it."""
    return {
        "checked_at": time_of(row.checked_at_ms),
        "drifted": row.drifted,
        "reason": row.reason,
        "shifted": row.shifted,
        "index": row.index,
        "series": row.series,
        "compared_from": time_of(row.recent[0]),
        "compared_until": time_of(row.recent[1]),
        "trained_at": time_of(row.trained_at_ms),
    }


def with_drift(source: Source, models: list[Row]) -> list[Row]:
    """Model versions with the newest comparison with the windows each was trained on; None = none yet."""
    newest: dict[int | None, DriftRow] = {}
    for row in reversed(all_verdicts(source)):
        newest[row.trained_at_ms] = row
    found = {time_of(at_ms): shown(row) for at_ms, row in newest.items() if at_ms is not None}
    return [{**model, "drift": found.get(model["trained_at"])} for model in models]
