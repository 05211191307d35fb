"""Verdicts on drift, each decided once for all daemons, and the windows that comparisons look at."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from sqlalchemy import Engine, desc, select

from storage import schema, text
from storage.engine import reading
from storage.facts import Facts
from storage.names import FEATURE_COLUMNS
from storage.schema import table
from storage.shown import Row, time_of
from storage.types import StoredWindow

FACTS, SERIES, WINDOWS = (
    table(schema.FactTable),
    table(schema.SeriesTable),
    table(schema.WindowTable),
)
KEY, AFTER_KEYS = "drift:", "drift;"  # ";" follows ":"
MAX_SHOWN = 10_000
SAMPLED_COLUMNS = (*FEATURE_COLUMNS, "score")


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


def recall(engine: Engine, checked_at_ms: int) -> DriftRow | None:
    """The verdict of this event time; None = not decided yet."""
    known = Facts(engine).recall(_key(checked_at_ms))
    return None if known is None else _row(known)


def remember(engine: Engine, row: DriftRow) -> DriftRow:
    """Store a verdict unless one is known; returns the stored one."""
    return _row(Facts(engine).remember(_key(row.checked_at_ms), text.to_json(asdict(row))))


def all_verdicts(engine: Engine, limit: int | None = None) -> list[DriftRow]:
    """Stored verdicts, newest first."""
    statement = (
        select(FACTS.c.value)
        .where(FACTS.c.key >= KEY, FACTS.c.key < AFTER_KEYS)
        .order_by(desc(FACTS.c.key))
        .limit(limit)
    )
    with reading(engine) as connection:
        return [_row(value) for value in connection.execute(statement).scalars()]


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


def with_drift(engine: Engine, models: list[Row]) -> list[Row]:
    """Model versions with the newest comparison with the windows each was trained on; None = none yet."""
    newest: dict[int | None, DriftRow] = {}
    for row in reversed(all_verdicts(engine, MAX_SHOWN)):
        newest[row.trained_at_ms] = row
    found = {time_of(at_ms): shown(row) for at_ms, row in newest.items() if at_ms is not None}
    return [{**model, "drift": found.get(model["trained_at"])} for model in models]


def known_series(engine: Engine, before_ms: int) -> list[tuple[int, str]]:
    """(id, name) of the series that had records before `before_ms`, in an order without favourites."""
    statement = select(SERIES.c.id, SERIES.c.name).where(SERIES.c.first_seen_ms < before_ms)
    with reading(engine) as connection:
        found = [(row.id, row.name) for row in connection.execute(statement)]
    return sorted(found, key=lambda each: hashlib.sha256(each[1].encode()).digest())


def calm_windows(
    engine: Engine, series_id: int, span: tuple[int, int], *, window_ms: int, limit: int
) -> list[tuple[float | None, ...]]:
    """Windows of a span that are not anomalous, thinned out evenly to about `limit` of them.

    Each is (window_start_ms, *SAMPLED_COLUMNS), None where nothing was measured.
    """
    every = max((span[1] - span[0]) // window_ms // limit, 1)
    statement = (
        select(WINDOWS.c.window_start_ms, *(WINDOWS.c[name] for name in SAMPLED_COLUMNS))
        .where(
            WINDOWS.c.series_id == series_id,
            WINDOWS.c.window_start_ms >= span[0],
            WINDOWS.c.window_start_ms < span[1],
            (WINDOWS.c.window_start_ms // window_ms) % every == 0,
            WINDOWS.c.is_anomalous.is_(False),
        )
        .order_by(WINDOWS.c.window_start_ms)
    )
    with reading(engine) as connection:
        return [tuple(row) for row in connection.execute(statement)]


def stored_windows(engine: Engine, series: str, since_ms: int, until_ms: int) -> list[StoredWindow]:
    """The committed windows of a series that start in [since_ms, until_ms), ascending."""
    statement = (
        select(WINDOWS.c.window_start_ms, WINDOWS.c.statistics, WINDOWS.c.is_anomalous)
        .join(SERIES, SERIES.c.id == WINDOWS.c.series_id)
        .where(SERIES.c.name == text.key(series, schema.NAME_LENGTH))
        .where(WINDOWS.c.window_start_ms >= since_ms, WINDOWS.c.window_start_ms < until_ms)
        .order_by(WINDOWS.c.window_start_ms)
    )
    with reading(engine) as connection:
        return [StoredWindow(*row) for row in connection.execute(statement)]


def _key(checked_at_ms: int) -> str:
    return f"{KEY}{checked_at_ms:016d}"


def _row(value: str) -> DriftRow:
    known = json.loads(value)
    known["recent"], known["reference"] = tuple(known["recent"]), tuple(known["reference"])
    return DriftRow(**known)
