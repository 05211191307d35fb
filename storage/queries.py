"""The readers: dict rows with the column names of the stable views, times as aware datetimes in UTC.

Nothing here needs pandas, torch or numba. Lists are bounded by `limit`; `after` holds the values of the
list's order (`ORDERS`, times in ms) of the last row of the page before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Select, case, desc, func, or_, select

from storage import schema
from storage.drift import with_drift
from storage.engine import reading
from storage.names import FEATURE_COLUMNS, GOING_ON, UnknownIncident
from storage.schema import table
from storage.shown import Key, Row, ms_of, ordered, rows
from storage.shown import rows as _rows  # noqa: F401  (its name for the other readers)
from storage.shown import time_of as time_of

PARTITIONS, SERIES, WINDOWS = (
    table(schema.PartitionTable),
    table(schema.SeriesTable),
    table(schema.WindowTable),
)
ALERTS, LINKS = table(schema.AlertTable), table(schema.IncidentAlertTable)
INCIDENTS, EVENTS = table(schema.IncidentTable), table(schema.IncidentEventTable)
LABELS, NOTES = table(schema.IncidentLabelTable), table(schema.IncidentNoteTable)
DEPLOYMENTS = table(schema.DeploymentTable)
DELIVERIES, REJECTS = table(schema.DeliveryTable), table(schema.RejectTable)
MODELS, SILENCES, REVISIONS = (
    table(schema.ModelTable),
    table(schema.SilenceTable),
    table(schema.WindowRevisionTable),
)
MAX_IDS = 500
BEFORE_MS = 3_600_000
ORDERS: dict[str, tuple[Key, ...]] = {
    "incidents": ((INCIDENTS.c.opened_at_ms, True), (INCIDENTS.c.incident_id, True)),
    "alerts": ((ALERTS.c.window_start_ms, True), (ALERTS.c.alert_id, True)),
    "windows": ((WINDOWS.c.window_start_ms, True),),
    "series": ((SERIES.c.name, False),),
    "deliveries": (
        (DELIVERIES.c.created_at_ms, True),
        (DELIVERIES.c.sequence, True),
        (DELIVERIES.c.delivery_id, False),
    ),
    "rejected": ((REJECTS.c.id, True),),
    "silences": ((SILENCES.c.starts_at_ms, True), (SILENCES.c.silence_id, False)),
    "models": ((MODELS.c.trained_at_ms, True), (MODELS.c.version, False)),
}
"""List -> the columns of its order, and whether each descends; unique together."""
After = Sequence[Any] | None
DELIVERY_COLUMNS = tuple(c for c in DELIVERIES.c if c.name not in ("payload", "lease_owner"))
SEVERITY_RANK = case({"critical": 0, "major": 1}, value=INCIDENTS.c.severity, else_=2)
_SHOWN = ("model", "endpoint", "first_seen_ms", "last_record_ms", "live", "windows")
_NEWEST = ("last_window_start_ms", "last_score", "last_is_anomalous")
SERIES_ROWS: Select[Any] = select(
    SERIES.c.name.label("series"),
    *(SERIES.c[n] for n in _SHOWN + _NEWEST),
    *(PARTITIONS.c.topic, PARTITIONS.c.partition),
).join(PARTITIONS, PARTITIONS.c.id == SERIES.c.partition_id)


def totals(engine: Engine) -> dict[str, int]:
    """Counts over everything ever read: records, accepted, rejected, late, duplicates, windows, series,
    alerts, incidents; accepted + rejected + late + duplicates = records."""
    names = ("records", "accepted", "rejected", "late", "duplicates")
    with reading(engine) as connection:
        sums = connection.execute(select(*(func.sum(PARTITIONS.c[n]) for n in names))).one()
        series, windows = connection.execute(select(func.count(), func.sum(SERIES.c.windows))).one()
        counts = {n: int(value or 0) for n, value in zip(names, sums, strict=True)}
        alerts = connection.execute(select(func.count()).select_from(ALERTS)).scalar_one()
        incidents = connection.execute(select(func.count()).select_from(INCIDENTS)).scalar_one()
    return {
        **counts,
        "windows": int(windows or 0),
        "series": series,
        "alerts": alerts,
        "incidents": incidents,
    }


def incidents(
    engine: Engine,
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
        newest = (INCIDENTS.c.opened_at_ms + 0, True)
    statement = ordered(select(INCIDENTS), (newest, then), after)
    if status is not None:
        statement = statement.where(INCIDENTS.c.status == status)
    if severity is not None:
        statement = statement.where(INCIDENTS.c.severity == severity)
    for column, value in ((ALERTS.c.series, series), (ALERTS.c.model, model)):
        if value is not None:
            linked = select(LINKS.c.incident_id).join(ALERTS, ALERTS.c.alert_id == LINKS.c.alert_id)
            statement = statement.where(INCIDENTS.c.incident_id.in_(linked.where(column == value)))
    if since_ms is not None:  # whatever was still going on since then
        statement = statement.where(
            or_(INCIDENTS.c.status.in_(GOING_ON), INCIDENTS.c.resolved_at_ms >= since_ms)
        )
    return with_labels(engine, rows(engine, statement.limit(limit)))


def with_labels(engine: Engine, incident_rows: list[Row]) -> list[Row]:
    """Rows of `incidents` as people see them."""
    shown = [_incident(row) for row in incident_rows]
    labels = _labels(engine, [row["incident_id"] for row in shown])
    return [{**row, "labels": labels.get(row["incident_id"], [])} for row in shown]


def find_incident(engine: Engine, reference: str) -> str:
    """The id meant by an id, by its beginning if only one has it, or by a position (1 = the newest).

    Raises UnknownIncident.
    """
    by_start = (
        select(INCIDENTS.c.incident_id)
        .where(INCIDENTS.c.incident_id.startswith(reference, autoescape=True))
        .order_by(INCIDENTS.c.incident_id)
        .limit(2)
    )
    newest = select(INCIDENTS.c.incident_id).order_by(
        desc(INCIDENTS.c.opened_at_ms), desc(INCIDENTS.c.incident_id)
    )
    with reading(engine) as connection:
        if reference.isascii() and reference.isdigit() and 0 < len(reference) < 6 and int(reference) > 0:
            at_position = connection.execute(newest.offset(int(reference) - 1).limit(1)).scalar()
            if at_position is not None:
                return str(at_position)
        found = list(connection.execute(by_start).scalars()) if reference else []
    if len(found) == 1 or (found and found[0] == reference):
        return str(found[0])
    raise UnknownIncident(
        f"{reference!r} is the beginning of several incidents" if found else f"no incident {reference!r}"
    )


def incident(engine: Engine, incident_id: str) -> Row:
    """One incident with `alerts`, `events` (oldest first), `deliveries`, `labels` and `notes`.

    Raises UnknownIncident.
    """
    found = rows(engine, select(INCIDENTS).where(INCIDENTS.c.incident_id == incident_id))
    if not found:
        raise UnknownIncident(f"no incident {incident_id!r}")
    events = (
        select(EVENTS).where(EVENTS.c.incident_id == incident_id).order_by(EVENTS.c.revision, EVENTS.c.id)
    )
    notes = select(NOTES).where(NOTES.c.incident_id == incident_id).order_by(NOTES.c.id)
    return {
        **_incident(found[0]),
        "labels": _labels(engine, [incident_id]).get(incident_id, []),
        "alerts": alerts(engine, incident_id=incident_id, limit=1_000)[::-1],
        "events": rows(engine, events, drop=("id", "incident_id")),
        "deliveries": deliveries(engine, incident_id=incident_id, limit=1_000)[::-1],
        "notes": rows(engine, notes, drop=("id", "incident_id")),
        "deployments": _deployments_around(engine, found[0]),
    }


def _deployments_around(engine: Engine, incident_row: Row) -> list[Row]:
    """New model versions of the incident's series from an hour before it until its end, oldest first."""
    series = json.loads(incident_row["series"])[:MAX_IDS]
    statement = (
        select(DEPLOYMENTS.c.series, DEPLOYMENTS.c.model_version, DEPLOYMENTS.c.at_ms)
        .where(DEPLOYMENTS.c.series.in_(series))
        .where(DEPLOYMENTS.c.at_ms >= ms_of(incident_row["started_at"]) - BEFORE_MS)
        .order_by(DEPLOYMENTS.c.at_ms, DEPLOYMENTS.c.series, DEPLOYMENTS.c.model_version)
    )
    if incident_row["resolved_at"] is not None:
        statement = statement.where(DEPLOYMENTS.c.at_ms <= ms_of(incident_row["resolved_at"]))
    return rows(engine, statement.limit(100))


def alerts(
    engine: Engine,
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
        newest = (ALERTS.c.window_start_ms + 0, True)
    statement = ordered(
        select(ALERTS, LINKS.c.incident_id).outerjoin(LINKS, LINKS.c.alert_id == ALERTS.c.alert_id),
        (newest, then),
        after,
    )
    equal = (
        (ALERTS.c.series, series),
        (ALERTS.c.model, model),
        (ALERTS.c.status, status),
        (LINKS.c.incident_id, incident_id),
    )
    for column, value in equal:
        if value is not None:
            statement = statement.where(column == value)
    if since_ms is not None:
        statement = statement.where(ALERTS.c.window_end_ms > since_ms)
    return rows(engine, statement.limit(limit))


def windows(
    engine: Engine,
    series: str,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    limit: int = 1_000,
    after: After = None,
) -> list[Row]:
    """The newest `limit` windows of a series that start in [since_ms, until_ms), oldest of them first."""
    columns = [WINDOWS.c[name] for name in FEATURE_COLUMNS]
    statement: Select[Any] = (
        select(
            SERIES.c.name.label("series"),
            SERIES.c.model,
            SERIES.c.endpoint,
            WINDOWS.c.window_start_ms,
            WINDOWS.c.window_end_ms,
            *columns,
            *(WINDOWS.c[n] for n in ("score", "gbdt_score", "lstm_score", "tail_probability")),
            WINDOWS.c.is_anomalous,
            WINDOWS.c.revision,
            WINDOWS.c.metrics,
        )
        .join(SERIES, SERIES.c.id == WINDOWS.c.series_id)
        .where(SERIES.c.name == series)
    )
    statement = ordered(statement, ORDERS["windows"], after)
    if since_ms is not None:
        statement = statement.where(WINDOWS.c.window_start_ms >= since_ms)
    if until_ms is not None:
        statement = statement.where(WINDOWS.c.window_start_ms < until_ms)
    return rows(engine, statement.limit(limit))[::-1]


def window_revisions(engine: Engine, series: str, window_start_ms: int) -> list[Row]:
    """What a window said before each amendment, oldest first."""
    statement = (
        select(REVISIONS)
        .join(SERIES, SERIES.c.id == REVISIONS.c.series_id)
        .where(SERIES.c.name == series, REVISIONS.c.window_start_ms == window_start_ms)
        .order_by(REVISIONS.c.revision)
    )
    return rows(engine, statement, drop=("series_id", "statistics"))


def series(
    engine: Engine,
    *,
    name: str | None = None,
    contains: str | None = None,
    model: str | None = None,
    since_ms: int | None = None,
    limit: int = 1_000,
    after: After = None,
) -> list[Row]:
    """Series by name, with how many windows they have had and the newest one's score."""
    statement = ordered(SERIES_ROWS, ORDERS["series"], after)
    if name is not None:
        statement = statement.where(SERIES.c.name == name)
    if contains is not None:
        statement = statement.where(SERIES.c.name.icontains(contains, autoescape=True))
    if model is not None:
        statement = statement.where(SERIES.c.model == model)
    if since_ms is not None:
        statement = statement.where(SERIES.c.last_record_ms >= since_ms)
    return rows(engine, statement.limit(limit))


def deliveries(
    engine: Engine,
    *,
    status: str | None = None,
    channel: str | None = None,
    incident_id: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """Notifications, newest first; `due_at` is the next attempt of those that still wait."""
    statement = ordered(select(*DELIVERY_COLUMNS), ORDERS["deliveries"], after)
    equal = (
        (DELIVERIES.c.status, status),
        (DELIVERIES.c.channel, channel),
        (DELIVERIES.c.incident_id, incident_id),
    )
    for column, value in equal:
        if value is not None:
            statement = statement.where(column == value)
    if since_ms is not None:
        statement = statement.where(DELIVERIES.c.created_at_ms >= since_ms)
    return rows(engine, statement.limit(limit))


def rejected(
    engine: Engine,
    *,
    reason: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
    after: After = None,
) -> list[Row]:
    """Rejected records, newest first; `id` only tells them apart."""
    statement = ordered(
        select(PARTITIONS.c.topic, PARTITIONS.c.partition, REJECTS).join(
            PARTITIONS, PARTITIONS.c.id == REJECTS.c.partition_id
        ),
        ORDERS["rejected"],
        after,
    )
    if reason is not None:
        statement = statement.where(REJECTS.c.reason == reason)
    if since_ms is not None:
        recent = REJECTS.c.received_at_ms >= since_ms
        first = select(func.min(REJECTS.c.id)).where(recent).scalar_subquery()
        statement = statement.where(recent, REJECTS.c.id >= first)
    return rows(engine, statement.limit(limit), drop=("partition_id", "topic_id"))


def sources(engine: Engine) -> list[Row]:
    """Partitions of the log, how far each is accounted for, and who owns it."""
    statement = select(PARTITIONS).order_by(PARTITIONS.c.topic, PARTITIONS.c.partition)
    return rows(engine, statement, drop=("id", "commit_token"))


def models(
    engine: Engine,
    *,
    version: str | None = None,
    status: str | None = None,
    limit: int = 10_000,
    after: After = None,
) -> list[Row]:
    """Model versions without their artefacts but with `drift`, newest first."""
    columns = (c for c in MODELS.c if c.name != "artifact")
    statement = ordered(select(*columns), ORDERS["models"], after)
    if version is not None:
        statement = statement.where(MODELS.c.version == version)
    if status is not None:
        statement = statement.where(MODELS.c.status == status)
    return with_drift(engine, rows(engine, statement.limit(limit)))


def silences(
    engine: Engine,
    *,
    silence_id: str | None = None,
    until_ms: int | None = None,
    limit: int = 10_000,
    after: After = None,
) -> list[Row]:
    """Silences, the newest first; `until_ms`: only those that end behind it."""
    statement = ordered(select(SILENCES), ORDERS["silences"], after)
    if silence_id is not None:
        statement = statement.where(SILENCES.c.silence_id == silence_id)
    if until_ms is not None:
        statement = statement.where(SILENCES.c.ends_at_ms > until_ms)
    return rows(engine, statement.limit(limit))


def delivery(engine: Engine, delivery_id: str) -> Row | None:
    """One notification without its payload; None for an unknown id."""
    statement = select(*DELIVERY_COLUMNS).where(DELIVERIES.c.delivery_id == delivery_id)
    return next(iter(rows(engine, statement)), None)


def _incident(row: Row) -> Row:
    series_names = json.loads(row["series"])
    shown = {**row, "series": series_names, "series_count": len(series_names)}
    del shown["group_key"]
    return shown


def _labels(engine: Engine, incident_ids: list[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for start in range(0, len(incident_ids), MAX_IDS):
        part = incident_ids[start : start + MAX_IDS]
        statement = select(LABELS).where(LABELS.c.incident_id.in_(part)).order_by(LABELS.c.id)
        for row in rows(engine, statement, drop=("id",)):
            label = {"label": row["label"], "by": row["author"], "at": row["at"], "comment": row["comment"]}
            found.setdefault(row["incident_id"], []).append(label)
    return found
