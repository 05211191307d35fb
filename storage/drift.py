"""Verdicts on drift, each decided once for all daemons, and the windows that comparisons look at."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from sqlalchemy import Engine, select

from storage import schema, text
from storage.engine import reading
from storage.facts import Facts
from storage.names import FEATURE_COLUMNS
from storage.schema import table
from storage.types import StoredWindow
from storage.verdicts import KEY, row_of
from storage.verdicts import DriftRow as DriftRow
from storage.verdicts import all_verdicts as all_verdicts

SERIES, WINDOWS = table(schema.SeriesTable), table(schema.WindowTable)
SAMPLED_COLUMNS = (*FEATURE_COLUMNS, "score")


def recall(engine: Engine, checked_at_ms: int) -> DriftRow | None:
    """The verdict of this event time; None = not decided yet."""
    known = Facts(engine).recall(_key(checked_at_ms))
    return None if known is None else row_of(known)


def remember(engine: Engine, row: DriftRow) -> DriftRow:
    """Store a verdict unless one is known; returns the stored one."""
    return row_of(Facts(engine).remember(_key(row.checked_at_ms), text.to_json(asdict(row))))


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
