"""What time alone brings about for incidents: reminders, what was held back, summaries.

Whoever looks holds the lock of the incidents, so that several daemons do it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, insert, select, update

from storage import folding, schema
from storage.engine import reading
from storage.names import GOING_ON
from storage.rows import decode_alert, outbox_row, to_incident, to_silence
from storage.schema import table
from storage.types import AlertRow, IncidentChanges, IncidentEventRow, IncidentRow, IncidentView, OutboxRow

INCIDENTS, EVENTS = table(schema.IncidentTable), table(schema.IncidentEventTable)
TRANSITIONS, SILENCES = table(schema.TransitionTable), table(schema.SilenceTable)
FACTS, PARTITIONS = table(schema.FactTable), table(schema.PartitionTable)
MAX_EVENTS = 20_000
MAX_IDS = 500

Attend = Callable[[IncidentView, Mapping[str, AlertRow], int], IncidentChanges]


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of an incident inside the time that a summary is about."""

    event: IncidentEventRow
    incident: IncidentRow  # as it stands now


Summarise = Callable[[int, int, list[Happened], list[IncidentRow]], OutboxRow | None]
"""(from ms, until ms, what happened in between, what is open) -> the notification; None = nothing to say."""


def event_time_ms(connection: Connection, up_to_ms: int) -> int | None:
    """The event time that counts: `up_to_ms`, but not beyond what was read; None before the first record."""
    newest = connection.execute(select(func.max(PARTITIONS.c.watermark_ms))).scalar()
    return None if newest is None or up_to_ms < 0 else min(int(newest), up_to_ms)


def has_open(engine: Engine) -> bool:
    with reading(engine) as connection:
        found = select(INCIDENTS.c.incident_id).where(INCIDENTS.c.status.in_(GOING_ON)).limit(1)
        return connection.execute(found).first() is not None


def attend(engine: Engine, decide: Attend, at_ms: int) -> int:
    """Let `decide` look at every open incident at event time `at_ms`; returns how many notifications came."""
    with engine.begin() as connection:
        folding.lock_incidents(connection)
        rows = connection.execute(select(INCIDENTS).where(INCIDENTS.c.status.in_(GOING_ON))).mappings()
        incidents = sorted(map(to_incident, rows), key=lambda i: (i.opened_at_ms, i.incident_id))
        alerts = _newest_alerts(connection, incidents)
        in_force = (SILENCES.c.starts_at_ms <= at_ms) & (SILENCES.c.ends_at_ms > at_ms)
        silences = [
            to_silence(row) for row in connection.execute(select(SILENCES).where(in_force)).mappings()
        ]
        changes = decide(IncidentView(incidents, {}, silences), alerts, at_ms)
        folding.write_changes(connection, changes)
        return len(changes.outbox)


def _newest_alerts(connection: Connection, incidents: list[IncidentRow]) -> dict[str, AlertRow]:
    """incident_id -> of its firing alerts the one with the newest window."""
    owner = {alert_id: i.incident_id for i in incidents for alert_id in i.firing}
    alert_ids = sorted(owner)
    newest: dict[str, tuple[int, str, AlertRow]] = {}
    for start in range(0, len(alert_ids), MAX_IDS):
        part = alert_ids[start : start + MAX_IDS]
        last = (
            select(func.max(TRANSITIONS.c.id))
            .where(TRANSITIONS.c.alert_id.in_(part), TRANSITIONS.c.folded)
            .group_by(TRANSITIONS.c.alert_id)
        )
        for row in connection.execute(select(TRANSITIONS.c.alert).where(TRANSITIONS.c.id.in_(last))):
            alert = decode_alert(row.alert)
            key, incident_id = (alert.window_end_ms, alert.alert_id), owner[alert.alert_id]
            if incident_id not in newest or key > newest[incident_id][:2]:
                newest[incident_id] = (*key, alert)
    return {incident_id: found[2] for incident_id, found in newest.items()}


def summarise(engine: Engine, key: str, until_ms: int, build: Summarise) -> bool:
    """Write the summary of everything since the last one under this key, up to `until_ms` (event time).

    The first call only notes where summaries begin. Returns whether a notification was written.
    """
    with reading(engine) as connection:
        if _known(connection, key) == str(until_ms):
            return False
    with engine.begin() as connection:
        folding.lock_incidents(connection)
        known = _known(connection, key)
        if known is None:
            connection.execute(insert(FACTS), {"key": key, "value": str(until_ms)})
            return False
        from_ms = int(known)
        if until_ms <= from_ms:
            return False
        connection.execute(update(FACTS).where(FACTS.c.key == key).values(value=str(until_ms)))
        still_open = select(INCIDENTS).where(INCIDENTS.c.status.in_(GOING_ON))
        open_now = [to_incident(row) for row in connection.execute(still_open).mappings()]
        row = build(from_ms, until_ms, _happened(connection, from_ms, until_ms), open_now)
        if row is None:
            return False
        connection.execute(insert(table(schema.DeliveryTable)), outbox_row(row))
        return True


def _known(connection: Connection, key: str) -> str | None:
    return connection.execute(select(FACTS.c.value).where(FACTS.c.key == key)).scalar()


def _happened(connection: Connection, from_ms: int, until_ms: int) -> list[Happened]:
    """Events of [from_ms, until_ms), oldest first."""
    rows = connection.execute(
        select(EVENTS)
        .where(EVENTS.c.at_ms >= from_ms, EVENTS.c.at_ms < until_ms)
        .order_by(EVENTS.c.at_ms, EVENTS.c.incident_id, EVENTS.c.revision)
        .limit(MAX_EVENTS)
    ).all()
    ids = sorted({row.incident_id for row in rows})
    incidents: dict[str, IncidentRow] = {}
    for start in range(0, len(ids), MAX_IDS):
        part = select(INCIDENTS).where(INCIDENTS.c.incident_id.in_(ids[start : start + MAX_IDS]))
        found = [to_incident(row) for row in connection.execute(part).mappings()]
        incidents.update((i.incident_id, i) for i in found)
    return [
        Happened(
            IncidentEventRow(r.incident_id, r.revision, r.at_ms, r.kind, r.actor, r.reason),
            incidents[r.incident_id],
        )
        for r in rows
        if r.incident_id in incidents
    ]
