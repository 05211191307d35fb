"""What only the pages ask: pages of a list with their totals, sparklines, counts.

As in storage.queries: dict rows, times as aware datetimes in UTC, every list bounded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, case, desc, func, or_, select

from storage import schema
from storage.engine import reading
from storage.lists import DELIVERY_COLUMNS, SERIES_COLUMNS
from storage.model_schema import TrainingTable
from storage.names import FEATURE_COLUMNS, GOING_ON, WARM_UP_WINDOWS
from storage.queries import with_labels
from storage.schema import table
from storage.shown import Row
from storage.shown import rows as rows_of

ALERTS, LINKS = table(schema.AlertTable), table(schema.IncidentAlertTable)
INCIDENTS, DELIVERIES = table(schema.IncidentTable), table(schema.DeliveryTable)
PARTITIONS, REJECTS = table(schema.PartitionTable), table(schema.RejectTable)
SERIES, WINDOWS = table(schema.SeriesTable), table(schema.WindowTable)
TRAININGS, DISABLED = table(TrainingTable), table(schema.ChannelTable)
SEVERITY_RANK = case({"critical": 0, "major": 1}, value=INCIDENTS.c.severity, else_=2)
SERIES_ROWS = select(
    SERIES.c.name.label("series"),
    *(SERIES.c[name] for name in SERIES_COLUMNS),
    *(PARTITIONS.c.topic, PARTITIONS.c.partition),
).join(PARTITIONS, PARTITIONS.c.id == SERIES.c.partition_id)
DELIVERY = tuple(DELIVERIES.c[name] for name in DELIVERY_COLUMNS)
SCORES = ("score", "gbdt_score", "lstm_score", "tail_probability")
METRIC_PREFIX = "metric."
MAX_REASONS, MAX_LEADING = 200, 5_000


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of one page, and how many there are on all of them."""

    rows: list[Row]
    total: int


def incident_page(
    engine: Engine,
    *,
    statuses: Sequence[str] = (),
    severity: str | None = None,
    text: str = "",
    limit: int = 50,
    offset: int = 0,
) -> Page:
    """Incidents for reading: the open ones first, the worst and longest of them on top; then the newest.

    `text` is looked for in titles, explanations and series names, whatever its case, and at the beginning
    of ids.
    """
    conditions: list[ColumnElement[bool]] = []
    if severity is not None:
        conditions.append(INCIDENTS.c.severity == severity)
    for word in text.split():
        columns = (INCIDENTS.c.title, INCIDENTS.c.summary, INCIDENTS.c.series)
        conditions.append(
            or_(
                INCIDENTS.c.incident_id.startswith(word, autoescape=True),
                *(c.icontains(word, autoescape=True) for c in columns),
            )
        )
    here = statuses or (*GOING_ON, "resolved")
    going_on = [*conditions, INCIDENTS.c.status.in_([status for status in here if status != "resolved"])]
    order = (SEVERITY_RANK, INCIDENTS.c.started_at_ms, INCIDENTS.c.incident_id)
    first = select(INCIDENTS).where(*going_on).order_by(*order)
    ended = [*conditions, INCIDENTS.c.status == "resolved"]
    then = select(INCIDENTS).where(*ended).order_by(desc(INCIDENTS.c.started_at_ms), INCIDENTS.c.incident_id)
    with reading(engine) as connection:
        begun = _counted(connection, INCIDENTS.c.incident_id, going_on)
        found = rows_of(connection, first.limit(limit).offset(offset)) if offset < begun else []
        total = begun
        if "resolved" in here:
            total += _counted(connection, INCIDENTS.c.incident_id, ended)
            rest = then.limit(limit - len(found)).offset(max(0, offset - begun))
            found += rows_of(connection, rest) if len(found) < limit else []
    return Page(with_labels(engine, found), total)


def incident_counts(engine: Engine) -> dict[tuple[str, str], int]:
    """How many incidents there are of each (status, severity)."""
    statement = select(INCIDENTS.c.status, INCIDENTS.c.severity, func.count()).group_by(
        INCIDENTS.c.status, INCIDENTS.c.severity
    )
    with reading(engine) as connection:
        return {(status, severity): n for status, severity, n in connection.execute(statement)}


def leading_alerts(engine: Engine, incident_ids: Sequence[str]) -> dict[str, Row]:
    """The alert with the highest score of each incident."""
    statement = (
        select(ALERTS, LINKS.c.incident_id)
        .join(LINKS, LINKS.c.alert_id == ALERTS.c.alert_id)
        .where(LINKS.c.incident_id.in_(list(incident_ids)), ALERTS.c.status != "withdrawn")
        .order_by(desc(ALERTS.c.score), ALERTS.c.window_start_ms, ALERTS.c.alert_id)
        .limit(MAX_LEADING)
    )
    leading: dict[str, Row] = {}
    for row in rows_of(engine, statement):
        leading.setdefault(str(row["incident_id"]), row)
    return leading


def delivery_counts(engine: Engine, incident_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Per incident: how many of its notifications are in each status."""
    statement = (
        select(DELIVERIES.c.incident_id, DELIVERIES.c.status, func.count())
        .where(DELIVERIES.c.incident_id.in_(list(incident_ids)))
        .group_by(DELIVERIES.c.incident_id, DELIVERIES.c.status)
    )
    found: dict[str, dict[str, int]] = {}
    with reading(engine) as connection:
        for incident_id, status, n in connection.execute(statement):
            found.setdefault(incident_id, {})[status] = n
    return found


def measurements(
    engine: Engine, series: str, features: Sequence[str], *, since_ms: int, until_ms: int, limit: int = 20_000
) -> list[Row]:
    """The newest `limit` windows that start in [since_ms, until_ms), oldest first.

    A row has `start_ms` (an integer), `is_anomalous`, the scores, and each feature asked for under its own
    name; `metric.NAME` is taken from the user's metrics. Unknown features are None.
    """
    known = [WINDOWS.c[name] for name in features if name in FEATURE_COLUMNS]
    custom = [name for name in features if name not in FEATURE_COLUMNS]
    columns = [WINDOWS.c.window_start_ms, WINDOWS.c.is_anomalous, *(WINDOWS.c[n] for n in SCORES), *known]
    if custom:
        columns.append(WINDOWS.c.metrics)
    statement = (
        select(*columns)
        .join(SERIES, SERIES.c.id == WINDOWS.c.series_id)
        .where(
            SERIES.c.name == series,
            WINDOWS.c.window_start_ms >= since_ms,
            WINDOWS.c.window_start_ms < until_ms,
        )
        .order_by(desc(WINDOWS.c.window_start_ms))
        .limit(limit)
    )
    with reading(engine) as connection:
        found = connection.execute(statement).mappings().all()
    rows = []
    for raw in reversed(found):
        row = dict(raw)
        row["start_ms"] = row.pop("window_start_ms")
        if custom:
            metrics = json.loads(row.pop("metrics") or "{}")
            row |= {name: metrics.get(name.removeprefix(METRIC_PREFIX)) for name in custom}
        rows.append(row)
    return rows


def metric_names(engine: Engine, series: str) -> list[str]:
    """Names of the user's metrics in the newest window of a series that has any, as `metric.NAME`."""
    statement = (
        select(WINDOWS.c.metrics)
        .join(SERIES, SERIES.c.id == WINDOWS.c.series_id)
        .where(SERIES.c.name == series)
        .order_by(desc(WINDOWS.c.window_start_ms))
        .limit(60)
    )
    with reading(engine) as connection:
        for text in connection.execute(statement).scalars():
            if text and (metrics := json.loads(text)):
                return [METRIC_PREFIX + name for name in sorted(metrics)]
    return []


def series_page(
    engine: Engine,
    *,
    text: str = "",
    state: str = "",
    warm_up: int = WARM_UP_WINDOWS,
    limit: int = 100,
    offset: int = 0,
) -> Page:
    """Series by name.

    `state` is "", "learning" (fewer windows than `warm_up`), "unusual" or "gone" (no longer seen).
    """
    conditions = [SERIES.c.name.icontains(word, autoescape=True) for word in text.split()]
    if state:
        conditions.append(_series_states(warm_up)[state])
    statement = SERIES_ROWS.where(*conditions).order_by(SERIES.c.name)
    rows = rows_of(engine, statement.limit(limit).offset(offset))
    return Page(rows, _count(engine, SERIES.c.id, conditions))


def series_counts(engine: Engine, *, warm_up: int = WARM_UP_WINDOWS) -> dict[str, int]:
    """How many series there are: `total`, and in each state of `series_page`."""
    states = _series_states(warm_up)
    statement = select(func.count(), *(func.sum(case((states[s], 1), else_=0)) for s in states))
    with reading(engine) as connection:
        total, *counts = connection.execute(statement.select_from(SERIES)).one()
    return {"total": total, **{name: int(n or 0) for name, n in zip(states, counts, strict=True)}}


def reject_reasons(engine: Engine) -> list[Row]:
    """Rejected records by topic, partition and reason, with the newest sample; most frequent first."""
    groups = (
        select(
            REJECTS.c.partition_id,
            REJECTS.c.reason,
            func.count().label("records"),
            func.min(REJECTS.c.received_at_ms).label("first_received_at_ms"),
            func.max(REJECTS.c.received_at_ms).label("received_at_ms"),
            func.max(REJECTS.c.id).label("newest"),
        )
        .group_by(REJECTS.c.partition_id, REJECTS.c.reason)
        .subquery()
    )
    statement = (
        select(PARTITIONS.c.topic, PARTITIONS.c.partition, groups, REJECTS.c.offset, REJECTS.c.sample)
        .join(PARTITIONS, PARTITIONS.c.id == groups.c.partition_id)
        .join(REJECTS, REJECTS.c.id == groups.c.newest)
        .order_by(desc(groups.c.records), PARTITIONS.c.topic, PARTITIONS.c.partition, groups.c.reason)
        .limit(MAX_REASONS)
    )
    return rows_of(engine, statement, drop=("partition_id", "newest"))


def trainings(engine: Engine, *, limit: int = 50) -> list[Row]:
    """Trainings that were decided, newest first, failed ones included."""
    return rows_of(engine, select(TRAININGS).order_by(desc(TRAININGS.c.trained_at_ms)).limit(limit))


def disabled_channels(engine: Engine) -> list[Row]:
    """Channels that nothing is sent to any more."""
    return rows_of(engine, select(DISABLED).order_by(DISABLED.c.channel).limit(1_000))


def delivery_page(
    engine: Engine,
    *,
    status: str = "",
    text: str = "",
    limit: int = 100,
    offset: int = 0,
) -> Page:
    """Notifications, newest first, with their incident's `title` and `severity`."""
    conditions: list[ColumnElement[bool]] = [DELIVERIES.c.status == status] if status else []
    for word in text.split():
        columns = (DELIVERIES.c.channel, DELIVERIES.c.event, DELIVERIES.c.last_error, INCIDENTS.c.title)
        conditions.append(or_(*(c.icontains(word, autoescape=True) for c in columns)))
    joined = DELIVERIES.outerjoin(INCIDENTS, INCIDENTS.c.incident_id == DELIVERIES.c.incident_id)
    asked = joined if text.strip() else DELIVERIES
    statement = (
        select(*DELIVERY, INCIDENTS.c.title, INCIDENTS.c.severity)
        .select_from(joined)
        .where(*conditions)
        .order_by(desc(DELIVERIES.c.created_at_ms), desc(DELIVERIES.c.sequence), DELIVERIES.c.delivery_id)
    )
    counted = select(func.count()).select_from(asked).where(*conditions)
    with reading(engine) as connection:
        total = int(connection.execute(counted).scalar_one())
    return Page(rows_of(engine, statement.limit(limit).offset(offset)), total)


def _series_states(warm_up: int) -> dict[str, ColumnElement[bool]]:
    return {
        "learning": SERIES.c.windows < warm_up,
        "unusual": SERIES.c.last_is_anomalous.is_(True),
        "gone": SERIES.c.live.is_(False),
    }


def _count(engine: Engine, key: Any, conditions: list[ColumnElement[bool]]) -> int:
    with reading(engine) as connection:
        return _counted(connection, key, conditions)


def _counted(connection: Connection, key: Any, conditions: list[ColumnElement[bool]]) -> int:
    return int(connection.execute(select(func.count(key)).where(*conditions)).scalar_one())
