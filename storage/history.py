"""Readers of what surrounds incidents: deployments, earlier values, steps of alerts, actions, changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, desc, func, select

from storage import schema
from storage.access_schema import ActionTable
from storage.engine import reading
from storage.queries import DEPLOYMENT_ROW, MAX_IDS
from storage.schema import table
from storage.shown import Key, Row, ordered, rows, time_of

DEPLOYMENTS, ACTIONS = table(schema.DeploymentTable), table(ActionTable)
TRANSITIONS, ALERTS = table(schema.TransitionTable), table(schema.AlertTable)
LINKS, INCIDENTS = table(schema.IncidentAlertTable), table(schema.IncidentTable)
EVENTS, DELIVERIES = table(schema.IncidentEventTable), table(schema.DeliveryTable)
PARTITIONS = table(schema.PartitionTable)
ORDERS: dict[str, tuple[Key, ...]] = {
    "deployments": (
        (DEPLOYMENTS.c.at_ms, True),
        (DEPLOYMENTS.c.series, False),
        (DEPLOYMENTS.c.model_version, False),
    ),
    "actions": ((ACTIONS.c.id, True),),
}
SIMILAR_POOL = 1_000
"""Earlier incidents that are compared, the newest ones."""


def deployments(
    engine: Engine,
    *,
    series: str | Sequence[str] | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    verdict: str | None = None,
    limit: int = 100,
    after: Sequence[Any] | None = None,
) -> list[Row]:
    """New model versions and how each compares with the one it replaces, newest first.

    `at` is the start of the first window (event time); `verdict` and what belongs to it is None before the
    first comparison.
    """
    statement = ordered(
        select(*DEPLOYMENT_ROW),
        ORDERS["deployments"],
        after,
    )
    if isinstance(series, str):
        statement = statement.where(DEPLOYMENTS.c.series == series)
    elif series is not None:
        statement = statement.where(DEPLOYMENTS.c.series.in_(list(series)[:MAX_IDS]))
    if since_ms is not None:
        statement = statement.where(DEPLOYMENTS.c.at_ms >= since_ms)
    if until_ms is not None:
        statement = statement.where(DEPLOYMENTS.c.at_ms < until_ms)
    if verdict is not None:
        statement = statement.where(DEPLOYMENTS.c.verdict == verdict)
    return rows(engine, statement.limit(limit))


def actions(
    engine: Engine, *, since_ms: int | None = None, limit: int = 100, after: Sequence[Any] | None = None
) -> list[Row]:
    """What people did to silences, models, deliveries and tokens, newest first."""
    statement = ordered(select(ACTIONS), ORDERS["actions"], after)
    if since_ms is not None:
        statement = statement.where(ACTIONS.c.at_ms >= since_ms)
    return rows(engine, statement.limit(limit))


def alert(engine: Engine, alert_id: str) -> Row | None:
    """One alert with its `steps`, oldest first (kept as long as windows are); None for an unknown id."""
    found = rows(
        engine,
        select(ALERTS, LINKS.c.incident_id)
        .outerjoin(LINKS, LINKS.c.alert_id == ALERTS.c.alert_id)
        .where(ALERTS.c.alert_id == alert_id),
    )
    if not found:
        return None
    steps = (
        select(TRANSITIONS.c.at_ms, TRANSITIONS.c.kind, TRANSITIONS.c.alert)
        .where(TRANSITIONS.c.alert_id == alert_id)
        .order_by(TRANSITIONS.c.at_ms, TRANSITIONS.c.id)
    )
    return {**found[0], "steps": [_step(row) for row in rows(engine, steps.limit(1_000))]}


def _step(row: Row) -> Row:
    then = json.loads(row["alert"])
    return {
        "at": row["at"],
        "kind": row["kind"],
        **{name: then[name] for name in ("severity", "score", "summary")},
        "window_start": time_of(then["window_start_ms"]),
        "window_end": time_of(then["window_end_ms"]),
    }


def earlier(engine: Engine, incident_id: str) -> tuple[list[Row], list[Row]]:
    """Up to SIMILAR_POOL incidents that opened before one (newest first), and the alerts of all, its own too.

    Incidents are bare rows of the table; alerts are rows of incident_id, series, model, endpoint,
    top_features and slices, without the withdrawn ones.
    """
    this = select(INCIDENTS.c.opened_at_ms).where(INCIDENTS.c.incident_id == incident_id).scalar_subquery()
    before = (
        select(INCIDENTS)
        .where(INCIDENTS.c.opened_at_ms <= this, INCIDENTS.c.incident_id != incident_id)
        .order_by(desc(INCIDENTS.c.opened_at_ms), desc(INCIDENTS.c.incident_id))
        .limit(SIMILAR_POOL)
    )
    columns = ("series", "model", "endpoint", "top_features", "slices")
    with reading(engine) as connection:
        incidents = rows(connection, before)
        ids = [incident_id, *(row["incident_id"] for row in incidents)]
        alerts: list[Row] = []
        for start in range(0, len(ids), MAX_IDS):
            alerts += rows(
                connection,
                select(LINKS.c.incident_id, *(ALERTS.c[name] for name in columns))
                .join(ALERTS, ALERTS.c.alert_id == LINKS.c.alert_id)
                .where(LINKS.c.incident_id.in_(ids[start : start + MAX_IDS]), ALERTS.c.status != "withdrawn"),
            )
    return incidents, alerts


def newest_change(engine: Engine) -> tuple[int, int, int]:
    """Id of the newest incident event, records of all partitions, newest watermark (ms); 0 without.

    Asked every second by each listener: small tables and indexes only.
    """
    with reading(engine) as connection:
        event = connection.execute(select(func.max(EVENTS.c.id))).scalar() or 0
        records, mark = connection.execute(
            select(func.sum(PARTITIONS.c.records), func.max(PARTITIONS.c.watermark_ms))
        ).one()
    return int(event), int(records or 0), max(0, int(mark or 0))


def events_after(engine: Engine, event_id: int, limit: int) -> list[Row]:
    """Incident events with a higher id, in order; ids grow in the order in which changes were committed."""
    statement = (
        select(EVENTS.c.id, EVENTS.c.incident_id, EVENTS.c.revision, EVENTS.c.kind)
        .where(EVENTS.c.id > event_id)
        .order_by(EVENTS.c.id)
        .limit(limit)
    )
    return rows(engine, statement)


def delivery_totals(engine: Engine) -> dict[str, int]:
    """How many notifications are in each status."""
    statement = select(DELIVERIES.c.status, func.count().label("n")).group_by(DELIVERIES.c.status)
    with reading(engine) as connection:
        return {str(row.status): int(row.n) for row in connection.execute(statement)}


def delivery_states(engine: Engine, limit: int) -> dict[str, tuple[str, int, str]]:
    """delivery_id -> (status, attempts, incident_id) of the newest ones."""
    statement = (
        select(
            DELIVERIES.c.delivery_id,
            DELIVERIES.c.status,
            DELIVERIES.c.attempts,
            DELIVERIES.c.incident_id,
        )
        .order_by(desc(DELIVERIES.c.created_at_ms), desc(DELIVERIES.c.sequence), DELIVERIES.c.delivery_id)
        .limit(limit)
    )
    with reading(engine) as connection:
        return {r.delivery_id: (r.status, r.attempts, r.incident_id) for r in connection.execute(statement)}
