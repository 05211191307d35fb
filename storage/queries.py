"""The readers: dict rows with the column names of the stable views, times as aware datetimes in UTC.

Nothing here needs pandas, torch or numba. Lists are bounded by `limit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Select, desc, func, or_, select

from storage import schema
from storage.engine import reading
from storage.names import FEATURE_COLUMNS, UnknownIncident
from storage.schema import table

Row = dict[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
JSON_COLUMNS = frozenset(
    ("firing", "top_features", "slices", "exemplars", "model_versions", "detail", "matchers", "metrics")
)

PARTITIONS, SERIES, WINDOWS = (
    table(schema.PartitionTable),
    table(schema.SeriesTable),
    table(schema.WindowTable),
)
ALERTS, LINKS = table(schema.AlertTable), table(schema.IncidentAlertTable)
INCIDENTS, EVENTS = table(schema.IncidentTable), table(schema.IncidentEventTable)
LABELS, NOTES = table(schema.IncidentLabelTable), table(schema.IncidentNoteTable)
DELIVERIES, REJECTS = table(schema.DeliveryTable), table(schema.RejectTable)
MODELS, SILENCES, REVISIONS = (
    table(schema.ModelTable),
    table(schema.SilenceTable),
    table(schema.WindowRevisionTable),
)
MAX_IDS = 500


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
    since_ms: int | None = None,
    limit: int = 100,
    before: tuple[int, str] | None = None,
) -> list[Row]:
    """Incidents, newest first; `before` = (opened_at ms, incident_id) of the last row of the page before."""
    statement = select(INCIDENTS).order_by(desc(INCIDENTS.c.opened_at_ms), desc(INCIDENTS.c.incident_id))
    if status is not None:
        statement = statement.where(INCIDENTS.c.status == status)
    if since_ms is not None:  # whatever was still going on since then
        statement = statement.where(
            or_(INCIDENTS.c.resolved_at_ms.is_(None), INCIDENTS.c.resolved_at_ms >= since_ms)
        )
    if before is not None:
        opened_ms, incident_id = before
        statement = statement.where(
            or_(
                INCIDENTS.c.opened_at_ms < opened_ms,
                (INCIDENTS.c.opened_at_ms == opened_ms) & (INCIDENTS.c.incident_id < incident_id),
            )
        )
    rows = [_incident(row) for row in _rows(engine, statement.limit(limit))]
    labels = _labels(engine, [row["incident_id"] for row in rows])
    return [{**row, "labels": labels.get(row["incident_id"], [])} for row in rows]


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
    found = _rows(engine, select(INCIDENTS).where(INCIDENTS.c.incident_id == incident_id))
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
        "events": _rows(engine, events, drop=("id", "incident_id")),
        "deliveries": deliveries(engine, incident_id=incident_id, limit=1_000)[::-1],
        "notes": _rows(engine, notes, drop=("id", "incident_id")),
    }


def alerts(
    engine: Engine,
    *,
    series: str | None = None,
    incident_id: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
) -> list[Row]:
    """Alerts, newest first, with the incident they belong to."""
    statement = (
        select(ALERTS, LINKS.c.incident_id)
        .outerjoin(LINKS, LINKS.c.alert_id == ALERTS.c.alert_id)
        .order_by(desc(ALERTS.c.window_start_ms), desc(ALERTS.c.alert_id))
    )
    if series is not None:
        statement = statement.where(ALERTS.c.series == series)
    if incident_id is not None:
        statement = statement.where(LINKS.c.incident_id == incident_id)
    if since_ms is not None:
        statement = statement.where(ALERTS.c.window_end_ms > since_ms)
    return _rows(engine, statement.limit(limit))


def windows(
    engine: Engine,
    series: str,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    limit: int = 1_000,
) -> list[Row]:
    """The newest `limit` windows of a series that start in [since_ms, until_ms), oldest of them first."""
    columns = [WINDOWS.c[name] for name in FEATURE_COLUMNS]
    statement = (
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
        .order_by(desc(WINDOWS.c.window_start_ms))
    )
    if since_ms is not None:
        statement = statement.where(WINDOWS.c.window_start_ms >= since_ms)
    if until_ms is not None:
        statement = statement.where(WINDOWS.c.window_start_ms < until_ms)
    return _rows(engine, statement.limit(limit))[::-1]


def window_revisions(engine: Engine, series: str, window_start_ms: int) -> list[Row]:
    """What a window said before each amendment, oldest first."""
    statement = (
        select(REVISIONS)
        .join(SERIES, SERIES.c.id == REVISIONS.c.series_id)
        .where(SERIES.c.name == series, REVISIONS.c.window_start_ms == window_start_ms)
        .order_by(REVISIONS.c.revision)
    )
    return _rows(engine, statement, drop=("series_id", "statistics"))


def series(engine: Engine, *, since_ms: int | None = None, limit: int = 1_000) -> list[Row]:
    """Series by name, with how many windows they have had and the newest one's score."""
    names = ("model", "endpoint", "first_seen_ms", "last_record_ms", "live", "windows")
    newest = ("last_window_start_ms", "last_score", "last_is_anomalous")
    statement = (
        select(
            SERIES.c.name.label("series"),
            *(SERIES.c[n] for n in names + newest),
            PARTITIONS.c.topic,
            PARTITIONS.c.partition,
        )
        .join(PARTITIONS, PARTITIONS.c.id == SERIES.c.partition_id)
        .order_by(SERIES.c.name)
    )
    if since_ms is not None:
        statement = statement.where(SERIES.c.last_record_ms >= since_ms)
    return _rows(engine, statement.limit(limit))


def deliveries(
    engine: Engine,
    *,
    status: str | None = None,
    incident_id: str | None = None,
    since_ms: int | None = None,
    limit: int = 100,
) -> list[Row]:
    """Notifications, newest first; `due_at` is the next attempt of those that still wait."""
    statement = select(*(c for c in DELIVERIES.c if c.name not in ("payload", "lease_owner"))).order_by(
        desc(DELIVERIES.c.created_at_ms), desc(DELIVERIES.c.sequence), DELIVERIES.c.delivery_id
    )
    if status is not None:
        statement = statement.where(DELIVERIES.c.status == status)
    if incident_id is not None:
        statement = statement.where(DELIVERIES.c.incident_id == incident_id)
    if since_ms is not None:
        statement = statement.where(DELIVERIES.c.created_at_ms >= since_ms)
    return _rows(engine, statement.limit(limit))


def rejected(engine: Engine, *, since_ms: int | None = None, limit: int = 100) -> list[Row]:
    """Rejected records, newest first."""
    statement = (
        select(PARTITIONS.c.topic, PARTITIONS.c.partition, REJECTS)
        .join(PARTITIONS, PARTITIONS.c.id == REJECTS.c.partition_id)
        .order_by(desc(REJECTS.c.id))
    )
    if since_ms is not None:
        statement = statement.where(REJECTS.c.received_at_ms >= since_ms)
    return _rows(engine, statement.limit(limit), drop=("id", "partition_id", "topic_id"))


def sources(engine: Engine) -> list[Row]:
    """Partitions of the log, how far each is accounted for, and who owns it."""
    statement = select(PARTITIONS).order_by(PARTITIONS.c.topic, PARTITIONS.c.partition)
    return _rows(engine, statement, drop=("id", "commit_token"))


def models(engine: Engine) -> list[Row]:
    """Model versions without their artefacts, newest first."""
    statement = select(*(c for c in MODELS.c if c.name != "artifact"))
    return _rows(engine, statement.order_by(desc(MODELS.c.trained_at_ms), MODELS.c.version))


def silences(engine: Engine) -> list[Row]:
    """Silences, the newest first."""
    return _rows(engine, select(SILENCES).order_by(desc(SILENCES.c.starts_at_ms), SILENCES.c.silence_id))


def time_of(ms: int | None) -> datetime | None:
    """Milliseconds since the epoch as an aware datetime."""
    return None if ms is None else EPOCH + timedelta(milliseconds=ms)


def _rows(engine: Engine, statement: Select[Any], drop: Iterable[str] = ()) -> list[Row]:
    dropped = frozenset(drop)
    with reading(engine) as connection:
        found = connection.execute(statement).mappings().all()
    return [_shown(dict(row), dropped) for row in found]


def _shown(row: Mapping[str, Any], dropped: frozenset[str]) -> Row:
    """Times (`*_at_ms`, `window_start_ms`, ...) as datetimes without the suffix, JSON as data."""
    shown: Row = {}
    for name, value in row.items():
        if name in dropped:
            continue
        if name in FEATURE_COLUMNS or not name.endswith("_ms"):
            in_json = name in JSON_COLUMNS and isinstance(value, str)
            shown[name] = json.loads(value) if in_json else value
        else:
            shown[name.removesuffix("_ms")] = time_of(value)
    return shown


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
        for row in _rows(engine, statement, drop=("id",)):
            label = {"label": row["label"], "by": row["author"], "at": row["at"], "comment": row["comment"]}
            found.setdefault(row["incident_id"], []).append(label)
    return found
