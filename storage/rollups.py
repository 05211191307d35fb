"""Hours: windows summed up per series and hour, kept much longer than the windows themselves.

An hour is summed up once, when no late record can amend its windows any more; what is newer is summed up
when it is asked for, so that a reader sees no seam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage import metric_hours
from storage.metric_hours import WEIGHT
from storage.names import FEATURE_COLUMNS
from storage.shown import Row, shown
from storage.sql import Plain, Select, dialect_of, fetch

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    Source = Engine | Connection | Plain

HOUR_MS = 3_600_000
CHUNK_SERIES = 50
SUMS, LARGEST = frozenset(("request_count", "cost_usd_sum")), frozenset(("memory_mb_max",))
"""Features whose hour is the sum of its windows, or their largest; the others are means over requests."""
FIGURES = ("windows", "anomalous_windows", *FEATURE_COLUMNS)
SCORES = ("score", "gbdt_score", "lstm_score", "tail_probability")
MAX_FRESH = 100_000


def _summed(feature: str) -> str:
    if feature in SUMS:
        return f"sum(w.{feature})"
    if feature in LARGEST:
        return f"max(w.{feature})"
    weight = f"sum(CASE WHEN w.{feature} IS NULL THEN 0 ELSE {WEIGHT} END)"
    return f"sum(w.{feature} * {WEIGHT}) / nullif({weight}, 0)"


_HOUR = f"w.window_start_ms - w.window_start_ms % {HOUR_MS}"
_SUMS = ", ".join(
    (
        f"w.series_id, {_HOUR} AS window_start_ms, count(*) AS windows",
        "sum(CASE WHEN w.is_anomalous THEN 1 ELSE 0 END) AS anomalous_windows",
        *(f"{_summed(name)} AS {name}" for name in FEATURE_COLUMNS),
        *(f"max(w.{name}) AS {name}" for name in SCORES[:3]),
        "min(w.tail_probability) AS tail_probability",
    )
)
_BEHIND = (
    "w.window_start_ms >= coalesce((SELECT max(h.window_start_ms) FROM window_hours h "
    f"WHERE h.series_id = w.series_id) + {HOUR_MS}, 0)"
)
_SETTLED = (
    "w.window_start_ms < CASE WHEN s.live THEN (s.last_window_start_ms - :horizon) "
    f"- (s.last_window_start_ms - :horizon) % {HOUR_MS} ELSE s.last_window_start_ms + 1 END"
)


_KEEP_METRICS = (
    "UPDATE window_hours SET metrics = :metrics WHERE series_id = :series AND window_start_ms = :start"
)


def roll_up(engine: Engine, *, horizon_ms: int) -> int:
    """Sum up the hours that have settled and are not yet; returns how many rows came.

    An hour of a live series has settled when its newest window starts `horizon_ms` (event time: what late
    records may amend) behind the end of the hour; of one that is no longer seen, at once.
    """
    from sqlalchemy import text

    from storage.text import to_json

    columns = ", ".join(("series_id", "window_start_ms", *FIGURES, *SCORES))
    metrics = _settled_metrics(engine.dialect.name)
    ids = [row["id"] for row in fetch(engine, "SELECT id FROM series ORDER BY id", {})]
    done = 0
    for start in range(0, len(ids), CHUNK_SERIES):
        part = ids[start : start + CHUNK_SERIES]
        statement = (
            f"INSERT INTO window_hours ({columns}) SELECT {_SUMS} "
            "FROM windows w JOIN series s ON s.id = w.series_id "
            f"WHERE s.id BETWEEN :first AND :last AND {_BEHIND} AND {_SETTLED} "
            f"GROUP BY w.series_id, {_HOUR}"
        )
        values = {"first": part[0], "last": part[-1], "horizon": horizon_ms}
        with engine.begin() as connection:
            measured = connection.execute(text(metrics), values).mappings().all()
            done += connection.execute(text(statement), values).rowcount
            kept = [
                {"series": series_id, "start": start_ms, "metrics": to_json(figures)}
                for (series_id, start_ms), figures in metric_hours.gathered(measured).items()
            ]
            if kept:
                connection.execute(text(_KEEP_METRICS), kept)
    return done


def _settled_metrics(dialect: str) -> str:
    """The users' metrics of the hours that are summed up now."""
    return (
        f"SELECT {metric_hours.columns(_HOUR, dialect)} "
        f"FROM {metric_hours.from_windows('windows w JOIN series s ON s.id = w.series_id', dialect)} "
        f"WHERE s.id BETWEEN :first AND :last AND {_BEHIND} AND {_SETTLED} "
        f"AND {metric_hours.is_measured(dialect)} GROUP BY {metric_hours.grouped(_HOUR)}"
    )


def hours(
    source: Source,
    series: str,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    limit: int = 1_000,
    after: Any = None,
) -> list[Row]:
    """The newest `limit` hours of a series that start in [since_ms, until_ms), oldest of them first.

    Rows are named as those of queries.windows are, with `windows` and `anomalous_windows`: scores are the
    highest, the tail probability the lowest of the hour; `metrics` has for each of the user's ones mean, min,
    max and the number of windows (None without any). `after` is [start of an hour, ms]: only before it.
    """
    known = fetch(source, *Select("id, model, endpoint", "series").equal("series", name=series).limited(1))
    if not known:
        return []
    if after is not None:
        until_ms = min(after[0], until_ms) if until_ms is not None else after[0]
    series_id = known[0]["id"]
    kept = Select("*", "window_hours").equal("window_hours", series_id=series_id)
    order = [("window_start_ms", True)]
    newest = _fresh(source, series_id, _hour_of(since_ms), _hour_of(until_ms, up=True))
    older = kept.from_to("window_start_ms", since_ms, until_ms).ordered(order)
    found = [*newest, *fetch(source, *older.limited(limit))]
    inside = [
        row
        for row in found
        if (since_ms is None or row["window_start_ms"] >= since_ms)
        and (until_ms is None or row["window_start_ms"] < until_ms)
    ]
    return shown([_hour(row, series, known[0]) for row in inside[:limit][::-1]])


def _fresh(source: Source, series_id: int, since_ms: int | None, until_ms: int | None) -> list[Row]:
    """Hours that are not summed up yet, made of their windows now; the newest first."""
    dialect = dialect_of(source)

    def of(columns: str, tables: str, group: str) -> Select:
        asked = Select(columns, tables, group=group).equal("w", series_id=series_id).where(_BEHIND)
        return asked.from_to("w.window_start_ms", since_ms, until_ms)

    sums = of(_SUMS, "windows w", f"w.series_id, {_HOUR}").ordered([("window_start_ms", True)])
    metrics = of(
        metric_hours.columns(_HOUR, dialect),
        metric_hours.from_windows("windows w", dialect),
        metric_hours.grouped(_HOUR),
    ).where(metric_hours.is_measured(dialect))
    found = fetch(source, *sums.limited(MAX_FRESH))
    figures = metric_hours.gathered(fetch(source, *metrics.limited(MAX_FRESH)))
    return [{**row, "metrics": figures.get((series_id, row["window_start_ms"]))} for row in found]


def _hour(row: Row, series: str, known: Row) -> Row:
    start_ms = row["window_start_ms"]
    return {
        "series": series,
        "model": known["model"],
        "endpoint": known["endpoint"],
        "window_start_ms": start_ms,
        "window_end_ms": start_ms + HOUR_MS,
        **{name: row[name] for name in (*FIGURES, *SCORES)},
        "is_anomalous": row["anomalous_windows"] > 0,
        "metrics": row["metrics"],
    }


def _hour_of(at_ms: int | None, *, up: bool = False) -> int | None:
    """The start of the hour of a time, or of the next one: no hour is summed up in parts."""
    if at_ms is None:
        return None
    start_ms = at_ms - at_ms % HOUR_MS
    return start_ms + HOUR_MS if up and start_ms < at_ms else start_ms
