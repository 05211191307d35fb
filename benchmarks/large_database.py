"""A database as large as years of use make it, filled row by row through the tables themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Engine

from storage import schema
from storage.bulk import insert_many
from storage.engine import upgrade
from storage.names import FEATURE_COLUMNS
from storage.schema import table

MINUTE_MS, START_MS = 60_000, 1_772_409_600_000
SERIES, DAY, PART = 1_000, 1_440, 50_000


def span_ms(windows: int) -> int:
    """From the first window's start to the newest one's end."""
    day = _day(windows)
    days, rest = divmod(windows, SERIES * day)
    return (days * day + min(rest, day)) * MINUTE_MS


def _day(windows: int) -> int:
    """Minutes of one series that stand together."""
    return min(DAY, max(1, windows // SERIES))


def incident_id(n: int) -> str:
    """Of the n-th incident, the oldest is 0."""
    return f"{n:08x}-0000-5000-8000-000000000000"


def alert_id(n: int) -> str:
    return f"{n:08x}-0000-5000-8000-000000000001"


def insert_windows(engine: Engine, windows: int, statistics: str | None = None) -> None:
    """SERIES series of one window a minute, a day of one series after the other, made by the database.

    Window i (from 0) is minute i % day of day i // (SERIES * day), of series i // day % SERIES.
    `statistics`: an SQL expression over i; zeros by default.
    """
    day = _day(windows)
    zeros = "zeroblob(400)" if engine.dialect.name == "sqlite" else "decode(repeat('00', 400), 'hex')"
    blob = statistics or zeros
    start = f"{START_MS} + (i / {SERIES * day} * {day} + i % {day}) * CAST({MINUTE_MS} AS BIGINT)"
    values = {
        **dict.fromkeys(FEATURE_COLUMNS, "0.5"), "request_count": "60.0",
        "series_id": f"i / {day} % {SERIES} + 1",
        "window_start_ms": start, "window_end_ms": f"{start} + {MINUTE_MS}", "score": "0.1",
        "gbdt_score": "0.1", "lstm_score": "0.1", "tail_probability": "0.5",
        "is_anomalous": "i * CAST(48271 AS BIGINT) % 1009 = 0", "revision": "0", "metrics": "NULL",
        "statistics": blob,
    }  # fmt: skip
    for first in range(0, windows, SERIES * day):
        last = min(first + SERIES * day, windows) - 1
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"INSERT INTO windows ({', '.join(values)}) WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL "
                f"SELECT i + 1 FROM n WHERE i < {last}) SELECT {', '.join(values.values())} FROM n"
            )


def incident_rows(incidents: int) -> Iterator[dict[str, Any]]:
    """One a minute, the newest 20 open; every 50th is critical."""
    for n in range(incidents):
        at = START_MS + n * MINUTE_MS
        still = n >= incidents - 20
        yield {
            "incident_id": incident_id(n), "group_key": f"m{n % 50}",
            "status": "open" if still else "resolved", "severity": "major" if n % 50 else "critical",
            "title": f"High latency {n}",
            "summary": "latency of m/x is 900 ms, usually 200 to 300 ms at this hour", "started_at_ms": at,
            "opened_at_ms": at, "acknowledged_at_ms": None, "last_fired_at_ms": at,
            "resolved_at_ms": None if still else at + 10 * MINUTE_MS, "resolution": None if still else "calm",
            "peak_score": 0.9, "series": json.dumps([f"m/{n % SERIES}"]), "firing": "[]", "revision": 2,
        }  # fmt: skip


def event_rows(incidents: int) -> Iterator[dict[str, Any]]:
    for n in range(incidents):
        for revision, kind in ((1, "opened"), (2, "alert_joined")):
            yield {
                "incident_id": incident_id(n), "revision": revision, "at_ms": START_MS + n * MINUTE_MS,
                "kind": kind, "actor": "inferwatch", "reason": "r", "detail": "{}",
            }  # fmt: skip


def alert_rows(incidents: int) -> Iterator[dict[str, Any]]:
    """One per incident."""
    features = json.dumps(
        [
            {"feature": f, "observed": 900.0, "expected": 250.0, "contribution": 0.4}
            for f in FEATURE_COLUMNS[:5]
        ]
    )
    for n in range(incidents):
        at = START_MS + n * MINUTE_MS
        yield {
            "alert_id": alert_id(n), "series": f"m/{n % SERIES}", "model": f"m{n % 50}", "endpoint": "x",
            "status": "resolved", "window_start_ms": at, "window_end_ms": at + MINUTE_MS, "fired_at_ms": at,
            "resolved_at_ms": at, "score": 0.9, "tail_probability": 1e-5, "severity": "major",
            "rarity": "once in 3 months for this series", "reason": "score", "summary": "latency is 900 ms",
            "top_features": features, "slices": "[]", "exemplars": "[]", "model_versions": '["v1"]',
        }  # fmt: skip


def link_rows(incidents: int) -> Iterator[dict[str, Any]]:
    return ({"alert_id": alert_id(n), "incident_id": incident_id(n)} for n in range(incidents))


def delivery_rows(incidents: int) -> Iterator[dict[str, Any]]:
    """An opening and an end per incident, all delivered."""
    for n in range(incidents):
        for sequence, event in enumerate(("incident.opened", "incident.resolved")):
            at = START_MS + n * MINUTE_MS + sequence
            yield {
                "delivery_id": f"{n:08x}-0000-5000-8000-00000000000{2 + sequence}", "channel": f"c{n % 3}",
                "incident_id": incident_id(n), "sequence": 2 * n + sequence, "event": event, "payload": "{}",
                "status": "delivered", "due_at_ms": at, "lease_owner": None, "attempts": 1,
                "created_at_ms": at, "first_attempt_at_ms": at, "delivered_at_ms": at, "finished_at_ms": at,
                "last_error": None, "resend_at_ms": None,
            }  # fmt: skip


def insert_series(engine: Engine, windows: int) -> None:
    """The tables, one partition and the SERIES series that these windows belong to."""
    upgrade(engine)
    partition = {"topic": "t", "partition": 0, "epoch": 1, "updated_at_ms": START_MS}
    newest_ms = START_MS + (span_ms(windows) - MINUTE_MS)
    with engine.begin() as connection:
        connection.execute(table(schema.PartitionTable).insert(), [partition])
        names = [
            {"id": i + 1, "name": f"m/{i}", "model": f"m{i % 50}", "endpoint": str(i), "partition_id": 1,
             "first_seen_ms": START_MS, "last_record_ms": newest_ms, "live": True,
             "windows": windows // SERIES, "last_window_start_ms": newest_ms, "last_score": 0.1,
             "last_is_anomalous": False}
            for i in range(SERIES)
        ]  # fmt: skip
        connection.execute(table(schema.SeriesTable).insert(), names)


def fill(engine: Engine, windows: int, incidents: int) -> None:
    """Everything in parts of PART rows, each in a transaction."""
    insert_series(engine, windows)
    insert_windows(engine, windows)
    for of, rows in (
        (schema.IncidentTable, incident_rows(incidents)),
        (schema.IncidentEventTable, event_rows(incidents)),
        (schema.AlertTable, alert_rows(incidents)),
        (schema.IncidentAlertTable, link_rows(incidents)),
        (schema.DeliveryTable, delivery_rows(incidents)),
    ):
        while part := list(islice(rows, PART)):
            with engine.begin() as connection:
                columns = tuple(part[0])
                insert_many(connection, table(of), columns, [tuple(row.values()) for row in part])
