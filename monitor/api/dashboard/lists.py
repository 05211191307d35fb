"""Contexts of the other pages: series, models, sources, silences, deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from monitor.api.dashboard import charts
from monitor.api.dashboard.render import epoch_ms
from monitor.measured import measured
from monitor.recurrence import DAYS
from monitor.silences import Wanted, again_words, never_ends, standing
from storage import page_queries, queries
from storage.names import SILENCE_FIELDS, WARM_UP_WINDOWS

Row = Mapping[str, Any]

SERIES_SIZE, DELIVERY_SIZE = 100, 100
SHOWN_ALERTS, SHOWN_REJECTS, SHOWN_OVER = 50, 50, 100
SERIES_STATES = {
    "": "All",
    "unusual": "Unusual now",
    "learning": "Learning",
    "gone": "No longer seen",
}
RANGES = {"3h": 3, "24h": 24, "7d": 168, "90d": 90 * 24, "1y": 365 * 24}
DELIVERY_STATES = {
    "": "All",
    "pending": "Waiting",
    "claimed": "Being sent",
    "delivered": "Delivered",
    "dead": "Failed",
}


def series_list(engine: Engine, *, text: str, state: str, page: int) -> tuple[dict[str, Any], int]:
    """Context of the list of series, and how many match."""
    found = page_queries.series_page(
        engine,
        text=text,
        state=state,
        warm_up=WARM_UP_WINDOWS,
        limit=SERIES_SIZE,
        offset=(page - 1) * SERIES_SIZE,
    )
    context = {
        "rows": found.rows,
        "counts": page_queries.series_counts(engine, warm_up=WARM_UP_WINDOWS),
        "states": list(SERIES_STATES.items()),
        "state": state,
        "text": text,
        "warm_up": WARM_UP_WINDOWS,
    }
    return context, found.total


def one_series(engine: Engine, row: Row, *, reach: str) -> dict[str, Any]:
    """Context of the page of one series; `reach` is how far back its charts go."""
    newest = row["last_window_start"] or row["last_record"]
    until_ms = epoch_ms(newest) + 1
    since_ms = until_ms - RANGES[reach] * charts.HOUR_MS
    name = str(row["series"])
    return {
        "series": row,
        "reach": reach,
        "ranges": list(RANGES),
        "charts": charts.series_charts(engine, name, since_ms=since_ms, until_ms=until_ms),
        "alerts": queries.alerts(engine, series=name, limit=SHOWN_ALERTS),
        "deployments": queries.deployments(engine, series=name, limit=SHOWN_ALERTS),
        "warm_up": WARM_UP_WINDOWS,
    }


def models(engine: Engine) -> dict[str, Any]:
    """Context of the page of model versions."""
    rows = queries.models(engine)
    trainings = page_queries.trainings(engine)
    return {
        "models": [{**row, **_measured(row["metrics"])} for row in rows],
        "champion": next((row for row in rows if row["status"] == "champion"), None),
        "failed": [row for row in trainings if row["outcome"] == "failed"],
        "in_force": sorted({r["model_version"] for r in queries.sources(engine) if r["model_version"]}),
    }


def _measured(metrics: Any) -> dict[str, Any]:
    """Metrics of a version as the page shows them: plain `figures`, and `curves` to be drawn."""
    found = measured(metrics)
    return {
        "figures": found.figures,
        "curves": [
            {
                "title": name,
                "first": values[0],
                "last": values[-1],
                "data": {
                    "label": name,
                    "unit": "",
                    "v": values,
                    "t": list(range(1, len(values) + 1)),
                    "steps": True,
                },
            }
            for name, values in found.curves
        ],
    }


def sources(engine: Engine, rows: Sequence[Row], *, wall_ms: int) -> dict[str, Any]:
    """Context of the page of partitions; `behind_ms` is event time behind the clock, None when unknown."""
    reasons = page_queries.reject_reasons(engine)
    return {
        "partitions": [
            {
                **row,
                "behind_ms": wall_ms - epoch_ms(row["watermark"]) if row["watermark"] is not None else None,
            }
            for row in rows
        ],
        "totals": {
            name: sum(int(row[name]) for row in rows)
            for name in ("records", "accepted", "rejected", "late", "duplicates")
        },
        "reasons": reasons,
        "rejected": queries.rejected(engine, limit=SHOWN_REJECTS) if reasons else [],
    }


def silences(engine: Engine, *, now_ms: int) -> dict[str, Any]:
    """Context of the page of silences: what holds, what waits for its time, what is over."""
    by_state: dict[str, list[dict[str, Any]]] = {"holds": [], "waits": [], "over": []}
    for row in queries.silences(engine):
        wanted = Wanted(epoch_ms(row["starts_at"]), epoch_ms(row["ends_at"]), row["recurrence"])
        now = standing(wanted, now_ms)
        told = {"next": None if now.next_ms is None else queries.time_of(now.next_ms)}
        told["ends_at"] = None if never_ends(row["ends_at"]) else row["ends_at"]
        by_state[now.state].append({**row, **told, "again": again_words(row["recurrence"])})
    return {**by_state, "over": by_state["over"][:SHOWN_OVER], "fields": SILENCE_FIELDS, "days": DAYS}


def deliveries(engine: Engine, *, status: str, text: str, page: int) -> tuple[dict[str, Any], int]:
    """Context of the delivery log, and how many rows match."""
    found = page_queries.delivery_page(
        engine, status=status, text=text, limit=DELIVERY_SIZE, offset=(page - 1) * DELIVERY_SIZE
    )
    context = {
        "rows": found.rows,
        "counts": queries.delivery_totals(engine),
        "states": list(DELIVERY_STATES.items()),
        "status": status,
        "text": text,
        "disabled": page_queries.disabled_channels(engine),
    }
    return context, found.total
