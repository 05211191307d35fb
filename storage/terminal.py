"""What the terminal asks beside storage.queries: scores, one overview."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, desc, func, select

from storage import history, queries, schema
from storage.engine import reading
from storage.names import GOING_ON
from storage.schema import table
from storage.shown import rows, time_of

SERIES, WINDOWS, PARTITIONS = (
    table(schema.SeriesTable),
    table(schema.WindowTable),
    table(schema.PartitionTable),
)
INCIDENTS = table(schema.IncidentTable)


@dataclass(frozen=True, slots=True)
class ScoredSeries:
    """Windows of one series in order, with how many it had had before the first of them."""

    series: str
    windows_before: int
    starts_ms: list[int]
    window_ms: int
    scores: list[float]  # in [0, 1]
    is_anomalous: list[bool]


def scored_series(
    engine: Engine, *, since_ms: int | None, until_ms: int | None, series: str | None, min_score: float
) -> Iterator[ScoredSeries]:
    """Series with a window of at least `min_score` in [since_ms, until_ms): all their windows there."""
    inside = [WINDOWS.c.window_start_ms >= since_ms] if since_ms is not None else []
    inside += [WINDOWS.c.window_start_ms < until_ms] if until_ms is not None else []
    worth = select(WINDOWS.c.series_id).where(WINDOWS.c.score >= min_score, *inside)
    chosen = select(SERIES.c.id, SERIES.c.name, SERIES.c.windows).where(SERIES.c.id.in_(worth))
    if series is not None:
        chosen = chosen.where(SERIES.c.name == series)
    with reading(engine) as connection:
        for row in connection.execute(chosen.order_by(SERIES.c.name)).all():
            of_it = WINDOWS.c.series_id == row.id
            first = inside[0] if since_ms is not None else WINDOWS.c.window_start_ms >= 0
            later = connection.execute(
                select(func.count()).select_from(WINDOWS).where(of_it, first)
            ).scalar_one()
            found = connection.execute(
                select(
                    WINDOWS.c.window_start_ms,
                    WINDOWS.c.window_end_ms,
                    WINDOWS.c.score,
                    WINDOWS.c.is_anomalous,
                )
                .where(of_it, *inside)
                .order_by(WINDOWS.c.window_start_ms)
            ).all()
            yield ScoredSeries(
                series=row.name,
                windows_before=row.windows - later,
                starts_ms=[w.window_start_ms for w in found],
                window_ms=found[0].window_end_ms - found[0].window_start_ms,
                scores=[w.score for w in found],
                is_anomalous=[bool(w.is_anomalous) for w in found],
            )


def newest_window(engine: Engine) -> tuple[int, int] | None:
    """Start and end, ms, of the newest window of any series; None without one."""
    newest = (
        select(SERIES.c.id, SERIES.c.last_window_start_ms)
        .where(SERIES.c.last_window_start_ms.is_not(None))
        .order_by(desc(SERIES.c.last_window_start_ms), SERIES.c.id)
        .limit(1)
        .subquery()
    )
    statement = select(WINDOWS.c.window_start_ms, WINDOWS.c.window_end_ms).join(
        newest,
        (newest.c.id == WINDOWS.c.series_id) & (newest.c.last_window_start_ms == WINDOWS.c.window_start_ms),
    )
    with reading(engine) as connection:
        found = connection.execute(statement).first()
    return None if found is None else (found.window_start_ms, found.window_end_ms)


def overview(engine: Engine, *, series_limit: int = 10) -> dict[str, Any]:
    """Everything `inferwatch top` shows at once."""
    unresolved = (
        select(INCIDENTS)
        .where(INCIDENTS.c.status.in_(GOING_ON))
        .order_by(queries.SEVERITY_RANK, desc(INCIDENTS.c.opened_at_ms), INCIDENTS.c.incident_id)
        .limit(20)
    )
    worst = (
        select(
            SERIES.c.name.label("series"),
            SERIES.c.last_window_start_ms,
            SERIES.c.last_score,
            SERIES.c.last_is_anomalous,
        )
        .where(SERIES.c.last_score.is_not(None))
        .order_by(desc(SERIES.c.last_score), SERIES.c.name)
        .limit(series_limit)
    )
    with reading(engine) as connection:
        watermark_ms = connection.execute(select(func.min(PARTITIONS.c.watermark_ms))).scalar()
    return {
        "event_time": time_of(watermark_ms),
        "totals": queries.totals(engine),
        "incidents": [queries._incident(row) for row in rows(engine, unresolved)],
        "series": rows(engine, worst),
        "deliveries": history.delivery_totals(engine),
    }
