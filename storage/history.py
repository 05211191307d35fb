"""Readers of what surrounds incidents: deployments, earlier values, steps of alerts, actions, changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, desc, func, select

from storage import schema
from storage.access_schema import ActionTable
from storage.engine import reading
from storage.revisions import steps
from storage.schema import table
from storage.shown import Key, Row, ordered, rows

ACTIONS = table(ActionTable)
ALERTS = table(schema.AlertTable)
LINKS, INCIDENTS = table(schema.IncidentAlertTable), table(schema.IncidentTable)
EVENTS, DELIVERIES = table(schema.IncidentEventTable), table(schema.DeliveryTable)
PARTITIONS = table(schema.PartitionTable)
ORDERS: dict[str, tuple[Key, ...]] = {
    "actions": ((ACTIONS.c.id, True),),
}


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
    return {**found[0], "steps": steps(engine, [alert_id]).get(alert_id, [])}


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
