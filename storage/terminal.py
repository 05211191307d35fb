"""What the terminal asks beside storage.queries: scores, one overview."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage import queries
from storage.names import GOING_ON
from storage.shown import time_of
from storage.sql import Plain, Select, fetch

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    Source = Engine | Connection | Plain

MAX_SERIES, MAX_WINDOWS = 1_000_000, 10_000_000
MAX_OVERVIEW = 100


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
    source: Source, *, since_ms: int | None, until_ms: int | None, series: str | None, min_score: float
) -> Iterator[ScoredSeries]:
    """Series with a window of at least `min_score` in [since_ms, until_ms): all their windows there."""
    worth = (
        Select("id, name, windows", "series")
        .equal("series", name=series)
        .exists(
            Select("1", "windows")
            .where("windows.series_id = series.id")
            .where("windows.score >= ?", min_score)
            .from_to("windows.window_start_ms", since_ms, until_ms)
        )
        .ordered([("series.name", False)])
    )
    for row in fetch(source, *worth.limited(MAX_SERIES)):
        of_it = Select("count(*) AS n", "windows").equal("windows", series_id=row["id"])
        later = fetch(source, *of_it.from_to("windows.window_start_ms", since_ms).limited(1))[0]["n"]
        inside = dataclasses.replace(
            of_it.from_to("windows.window_start_ms", since_ms, until_ms),
            columns="window_start_ms, window_end_ms, score, is_anomalous",
        ).ordered([("windows.window_start_ms", False)])
        found = fetch(source, *inside.limited(MAX_WINDOWS))
        yield ScoredSeries(
            series=row["name"],
            windows_before=row["windows"] - later,
            starts_ms=[w["window_start_ms"] for w in found],
            window_ms=found[0]["window_end_ms"] - found[0]["window_start_ms"],
            scores=[w["score"] for w in found],
            is_anomalous=[bool(w["is_anomalous"]) for w in found],
        )


def newest_window(source: Source) -> tuple[int, int] | None:
    """Start and end, ms, of the newest window of any series; None without one."""
    last = (
        Select("id, last_window_start_ms AS start_ms", "series")
        .where("last_window_start_ms IS NOT NULL")
        .ordered([("last_window_start_ms", True), ("id", False)])
    )
    for series in fetch(source, *last.limited(1)):
        window = Select("window_start_ms, window_end_ms", "windows").equal(
            "windows", series_id=series["id"], window_start_ms=series["start_ms"]
        )
        for row in fetch(source, *window.limited(1)):
            return row["window_start_ms"], row["window_end_ms"]
    return None


def overview(source: Source, *, series_limit: int = 10) -> dict[str, Any]:
    """Everything `inferwatch top` shows at once; `going_on` counts all incidents that are not resolved."""
    worst = (
        Select("name AS series, last_window_start_ms, last_score, last_is_anomalous", "series")
        .where("last_score IS NOT NULL")
        .ordered([("last_score", True), ("name", False)])
    )
    unresolved = Select("count(*) AS n", "incidents").within("incidents.status", GOING_ON)
    (going_on,) = fetch(source, *unresolved.limited(1))
    (mark,) = fetch(source, "SELECT min(watermark_ms) AS at_ms FROM partitions", {})
    return {
        "event_time": time_of(mark["at_ms"]),
        "totals": queries.totals(source),
        "going_on": going_on["n"],
        "incidents": queries.unresolved(source, MAX_OVERVIEW),
        "series": queries.rows(source, worst, series_limit),
        "deliveries": queries.delivery_totals(source),
    }
