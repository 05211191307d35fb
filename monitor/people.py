"""What people do to incidents: who was told of one hears its end too."""

from __future__ import annotations

import json
import uuid

from sqlalchemy import Engine

from monitor.config import Settings
from monitor.incidents import NAMESPACE, payload
from storage import queries
from storage.people import People
from storage.types import IncidentEventRow, IncidentRow, OutboxRow

RESOLVED = "incident.resolved"


def people(engine: Engine, settings: Settings) -> People:
    """Actions on incidents of `engine`; the end of one goes to the channels that have heard of it.

    A channel whose settings leave out `incident.resolved` is not told; one that these settings do not know
    is, because the daemon may know it.
    """

    def notify(incident: IncidentRow, event: IncidentEventRow) -> list[OutboxRow]:
        if event.kind != "resolved":
            return []
        sent = queries.deliveries(engine, incident_id=incident.incident_id, limit=10_000)
        told = sorted({str(row["channel"]) for row in sent})
        return [_row(incident, event, name) for name in told if _wants_end(settings, name)]

    return People(engine, notify)


def _wants_end(settings: Settings, name: str) -> bool:
    channel = settings.channels.get(name)
    return channel is None or RESOLVED in channel.events


def _row(incident: IncidentRow, event: IncidentEventRow, channel: str) -> OutboxRow:
    key = json.dumps([incident.incident_id, incident.revision, channel])
    return OutboxRow(
        delivery_id=str(uuid.uuid5(NAMESPACE, key)),
        incident_id=incident.incident_id,
        sequence=incident.revision,
        event=RESOLVED,
        channel=channel,
        payload=payload(RESOLVED, incident, [], event.at_ms),
        created_at_ms=event.at_ms,
    )
