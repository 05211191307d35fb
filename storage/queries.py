"""The readers: dict rows with the column names of the stable views, times as aware datetimes in UTC.

Nothing here needs SQLAlchemy unless the `source` is one of its engines or connections. Lists are bounded by
`limit`; `after` holds the values of the list's order (storage.lists.ORDERS, times in ms) of the last row of
the page before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from storage.lists import (
    ALERTS,
    DELIVERIES,
    DEPLOYMENTS,
    INCIDENT_IDS,
    INCIDENTS,
    LINKED,
    MODELS,
    ORDERS,
    SERIES,
    SEVERITY_RANK,
    WINDOWS,
)
from storage.names import GOING_ON, UnknownIncident
from storage.shown import Row, ms_of, shown
from storage.shown import time_of as time_of
from storage.sql import Plain, Select, columns_of, fetch
from storage.verdicts import with_drift

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    Source = Engine | Connection | Plain

MAX_IDS, MAX_EVENTS, MAX_ALERTS, MAX_PARTITIONS = 500, 100_000, 1_000_000, 100_000
SIMILAR_POOL = 1_000
"""Earlier incidents that are compared, the newest ones."""
BEFORE_MS = 3_600_000
After = Sequence[Any] | None


def rows(source: Source, statement: Select, limit: int, drop: Iterable[str] = ()) -> list[Row]:
    """At most `limit` rows as people see them."""
    return shown(fetch(source, *statement.limited(limit)), drop)


def totals(source: Source) -> dict[str, int]:
    """Counts over everything ever read: records, accepted, rejected, late, duplicates, windows, series,
    alerts, incidents; accepted + rejected + late + duplicates = records."""
    names = ("records", "accepted", "rejected", "late", "duplicates")
    sums = ", ".join(f"sum({name}) AS {name}" for name in names)
    counts = {
        **fetch(source, f"SELECT {sums} FROM partitions", {})[0],
        **fetch(source, "SELECT sum(windows) AS windows, count(*) AS series FROM series", {})[0],
        **fetch(source, "SELECT count(*) AS alerts FROM alerts", {})[0],
        **fetch(source, "SELECT count(*) AS incidents FROM incidents", {})[0],
    }
    return {name: int(value or 0) for name, value in counts.items()}


def incidents(
    source: Source,
    *,
    status: str | None = None,
    severity: str | None = None,
    series: str | None = None,
    model: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """Incidents, newest first."""
    newest, then = ORDERS["incidents"]
    if since_ms is not None:  # by the two indexes of its condition, not through all in this order
        newest = ("incidents.opened_at_ms + 0", True)
    statement = INCIDENTS.equal("incidents", status=status, severity=severity)
    for column, value in (("series", series), ("model", model)):
        if value is not None:
            statement = statement.where(
                f"incidents.incident_id IN ({LINKED} WHERE alerts.{column} = ?)", value
            )
    if since_ms is not None:  # whatever was still going on since then
        statement = statement.where(
            "(incidents.status IN (?, ?) OR incidents.resolved_at_ms >= ?)", *GOING_ON, since_ms
        )
    return with_labels(source, rows(source, statement.ordered((newest, then), after), limit))


def with_labels(source: Source, incident_rows: list[Row]) -> list[Row]:
    """Rows of `incidents` as people see them."""
    found = [_incident(row) for row in incident_rows]
    labels = _labels(source, [row["incident_id"] for row in found])
    return [{**row, "labels": labels.get(row["incident_id"], [])} for row in found]


def unresolved(source: Source, limit: int) -> list[Row]:
    """Incidents that go on, the worst and then the newest first; without their labels."""
    order = ((SEVERITY_RANK, False), ("incidents.opened_at_ms", True), ("incidents.incident_id", False))
    statement = INCIDENTS.within("incidents.status", GOING_ON).ordered(order)
    return [_incident(row) for row in rows(source, statement, limit)]


def find_incident(source: Source, reference: str) -> str:
    """The id meant by a position (1 = the newest) or as `full_id` understands it, for people at a terminal.

    Raises UnknownIncident.
    """
    if reference.isascii() and reference.isdigit() and 0 < len(reference) < 6 and int(reference) > 0:
        newest = INCIDENT_IDS.ordered(ORDERS["incidents"]).limited(1, int(reference) - 1)
        for row in fetch(source, *newest):
            return str(row["incident_id"])
    return full_id(source, reference)


def full_id(source: Source, reference: str) -> str:
    """The id meant by an id, or by its beginning if only one has it. Raises UnknownIncident."""
    begun = INCIDENT_IDS.starts_with("incidents.incident_id", reference).ordered(
        [("incidents.incident_id", False)]
    )
    found = [row["incident_id"] for row in rows(source, begun, 2)] if reference else []
    if len(found) == 1 or (found and found[0] == reference):
        return str(found[0])
    raise UnknownIncident(
        f"{reference!r} is the beginning of several incidents" if found else f"no incident {reference!r}"
    )


def incident(source: Source, incident_id: str) -> Row:
    """One incident with `alerts`, `events` (oldest first), `deliveries`, `labels` and `notes`.

    Raises UnknownIncident.
    """
    found = rows(source, INCIDENTS.equal("incidents", incident_id=incident_id), 1)
    if not found:
        raise UnknownIncident(f"no incident {incident_id!r}")
    events = Select("*", "incident_events").equal("incident_events", incident_id=incident_id)
    notes = Select("*", "incident_notes").equal("incident_notes", incident_id=incident_id)
    internal = ("id", "incident_id")
    return {
        **_incident(found[0]),
        "labels": _labels(source, [incident_id]).get(incident_id, []),
        "alerts": alerts(source, incident_id=incident_id, limit=1_000)[::-1],
        "events": rows(source, events.ordered([("revision", False), ("id", False)]), MAX_EVENTS, internal),
        "deliveries": deliveries(source, incident_id=incident_id, limit=1_000)[::-1],
        "notes": rows(source, notes.ordered([("id", False)]), MAX_EVENTS, internal),
        "deployments": _deployments_around(source, found[0]),
    }


def _deployments_around(source: Source, incident_row: Row) -> list[Row]:
    """New model versions of the incident's series from an hour before it until its end, oldest first."""
    end = incident_row["resolved_at"]
    statement = (
        DEPLOYMENTS.within("series", json.loads(incident_row["series"])[:MAX_IDS])
        .from_to("at_ms", ms_of(incident_row["started_at"]) - BEFORE_MS, end and ms_of(end) + 1)
        .ordered([("at_ms", False), ("series", False), ("model_version", False)])
    )
    return rows(source, statement, 100)


def deployments(
    source: Source,
    *,
    series: str | Sequence[str] | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    verdict: str | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """New model versions and how each compares with the one it replaces, newest first.

    `at` is the start of the first window (event time); `verdict` and what belongs to it is None before the
    first comparison.
    """
    statement = DEPLOYMENTS.from_to("at_ms", since_ms, until_ms).equal("deployments", verdict=verdict)
    if series is not None:
        statement = statement.within("series", [series] if isinstance(series, str) else series[:MAX_IDS])
    return rows(source, statement.ordered(ORDERS["deployments"], after), limit)


def alerts(
    source: Source,
    *,
    series: str | None = None,
    model: str | None = None,
    status: str | None = None,
    incident_id: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """Alerts, newest first, with the incident they belong to."""
    newest, then = ORDERS["alerts"]
    if since_ms is not None:  # by the index of its condition
        newest = ("alerts.window_start_ms + 0", True)
    statement = ALERTS.equal("alerts", series=series, model=model, status=status)
    statement = statement.equal("incident_alerts", incident_id=incident_id)
    if since_ms is not None:
        statement = statement.where("alerts.window_end_ms > ?", since_ms)
    return rows(source, statement.ordered((newest, then), after), limit)


def windows(
    source: Source,
    series: str,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    limit: int = 1_000,
    after: After = None,
) -> list[Row]:
    """The newest `limit` windows of a series that start in [since_ms, until_ms), oldest of them first."""
    statement = WINDOWS.equal("series", name=series).from_to("windows.window_start_ms", since_ms, until_ms)
    return rows(source, statement.ordered(ORDERS["windows"], after), limit)[::-1]


def window_revisions(source: Source, series: str, window_start_ms: int) -> list[Row]:
    """What a window said before each amendment, oldest first."""
    statement = (
        Select("window_revisions.*", "window_revisions JOIN series ON series.id = window_revisions.series_id")
        .equal("series", name=series)
        .equal("window_revisions", window_start_ms=window_start_ms)
        .ordered([("window_revisions.revision", False)])
    )
    return rows(source, statement, MAX_EVENTS, drop=("series_id", "statistics"))


def series(
    source: Source,
    *,
    name: str | None = None,
    contains: str | None = None,
    model: str | None = None,
    since_ms: int | None = None,
    limit: int = 1_000,
    after: After = None,
) -> list[Row]:
    """Series by name, with how many windows they have had and the newest one's score."""
    statement = SERIES.equal("series", name=name, model=model).from_to("series.last_record_ms", since_ms)
    if contains is not None:
        statement = statement.contains("series.name", contains)
    return rows(source, statement.ordered(ORDERS["series"], after), limit)


def deliveries(
    source: Source,
    *,
    status: str | None = None,
    channel: str | None = None,
    incident_id: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """Notifications, newest first; `due_at` is the next attempt of those that still wait."""
    statement = DELIVERIES.equal("deliveries", status=status, channel=channel, incident_id=incident_id)
    statement = statement.from_to("deliveries.created_at_ms", since_ms)
    return rows(source, statement.ordered(ORDERS["deliveries"], after), limit)


def rejected(
    source: Source,
    *,
    reason: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """Rejected records, newest first; `id` only tells them apart."""
    statement = Select(
        "partitions.topic, partitions.partition, rejects.*",
        "rejects JOIN partitions ON partitions.id = rejects.partition_id",
    )
    statement = statement.equal("rejects", reason=reason).from_to("rejects.received_at_ms", since_ms)
    if since_ms is not None:
        first = "SELECT min(rejects.id) FROM rejects WHERE rejects.received_at_ms >= ?"
        statement = statement.where(f"rejects.id >= ({first})", since_ms)
    statement = statement.ordered(ORDERS["rejected"], after)
    return rows(source, statement, limit, drop=("partition_id", "topic_id"))


def sources(source: Source) -> list[Row]:
    """Partitions of the log, how far each is accounted for, and who owns it."""
    statement = Select("*", "partitions").ordered([("topic", False), ("partition", False)])
    return rows(source, statement, MAX_PARTITIONS, drop=("id", "commit_token"))


def models(
    source: Source,
    *,
    version: str | None = None,
    status: str | None = None,
    limit: int = 10_000,
    after: After = None,
) -> list[Row]:
    """Model versions without their artefacts but with `drift`, newest first."""
    statement = MODELS.equal("models", version=version, status=status).ordered(ORDERS["models"], after)
    return with_drift(source, rows(source, statement, limit))


def silences(
    source: Source,
    *,
    silence_id: str | None = None,
    until_ms: int | None = None,
    limit: int = 10_000,
    after: After = None,
) -> list[Row]:
    """Silences, the newest first; `until_ms`: only those that end behind it."""
    statement = Select("*", "silences").equal("silences", silence_id=silence_id)
    if until_ms is not None:
        statement = statement.where("silences.ends_at_ms > ?", until_ms)
    return rows(source, statement.ordered(ORDERS["silences"], after), limit)


def delivery(source: Source, delivery_id: str) -> Row | None:
    """One notification without its payload; None for an unknown id."""
    return next(iter(rows(source, DELIVERIES.equal("deliveries", delivery_id=delivery_id), 1)), None)


def delivery_totals(source: Source) -> dict[str, int]:
    """How many notifications are in each status."""
    found = fetch(source, "SELECT status, count(*) AS n FROM deliveries GROUP BY status", {})
    return {str(row["status"]): int(row["n"]) for row in found}


def earlier(source: Source, incident_id: str) -> tuple[list[Row], list[Row]]:
    """Up to SIMILAR_POOL incidents that opened before one (newest first), and the alerts of all, its own too.

    Incidents are bare rows of the table; alerts are rows of incident_id, series, model, endpoint,
    top_features and slices, without the withdrawn ones.
    """
    before = INCIDENTS.where(
        "incidents.opened_at_ms <= (SELECT opened_at_ms FROM incidents AS this WHERE this.incident_id = ?)",
        incident_id,
    ).where("incidents.incident_id <> ?", incident_id)
    found = rows(source, before.ordered(ORDERS["incidents"]), SIMILAR_POOL)
    ids = [incident_id, *(row["incident_id"] for row in found)]
    columns = columns_of("alerts", ("series", "model", "endpoint", "top_features", "slices"))
    of_them = Select(
        f"incident_alerts.incident_id, {columns}", "incident_alerts JOIN alerts USING (alert_id)"
    )
    alert_rows: list[Row] = []
    for start in range(0, len(ids), MAX_IDS):
        part = of_them.within("incident_alerts.incident_id", ids[start : start + MAX_IDS])
        alert_rows += rows(source, part.where("alerts.status <> ?", "withdrawn"), MAX_ALERTS)
    return found, alert_rows


def _incident(row: Row) -> Row:
    series_names = json.loads(row["series"])
    shown = {**row, "series": series_names, "series_count": len(series_names)}
    del shown["group_key"]
    return shown


def _labels(source: Source, incident_ids: list[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for start in range(0, len(incident_ids), MAX_IDS):
        statement = Select("*", "incident_labels").within(
            "incident_id", incident_ids[start : start + MAX_IDS]
        )
        for row in rows(source, statement.ordered([("id", False)]), MAX_ALERTS, drop=("id",)):
            label = {"label": row["label"], "by": row["author"], "at": row["at"], "comment": row["comment"]}
            found.setdefault(row["incident_id"], []).append(label)
    return found
