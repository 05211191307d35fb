"""What people do to incidents: who was told of one hears its end too."""

from __future__ import annotations

import json
import uuid

from sqlalchemy import Engine

from monitor.config import Settings
from monitor.memo import Memo
from monitor.payloads import payload
from monitor.telling import NAMESPACE
from storage import queries
from storage.people import People
from storage.types import IncidentEventRow, IncidentRow, OutboxRow

EVENTS = {
    "resolved": "incident.resolved",
    "acknowledged": "incident.acknowledged",
    "reopened": "incident.reopened",
}
"""What channels are told of; the other things people do stay in the database."""


def people(engine: Engine, settings: Settings) -> People:
    """Actions on incidents of `engine`; channels that have heard of one hear of its end.

    Of an acknowledgement those hear that want `incident.acknowledged`, unless it comes after the end. Of an
    end all but those whose settings leave out `incident.resolved`; one that these settings do not know is
    told, because the daemon may know it.
    """

    def notify(incident: IncidentRow, event: IncidentEventRow) -> list[OutboxRow]:
        kind = EVENTS.get(event.kind)
        if kind is None or (event.kind == "acknowledged" and incident.status == "resolved"):
            return []
        sent = queries.deliveries(engine, incident_id=incident.incident_id, limit=10_000)
        told = sorted({str(row["channel"]) for row in sent})
        return [_row(incident, event, kind, name) for name in told if _wants(settings, name, kind)]

    return People(engine, notify)


def _wants(settings: Settings, name: str, kind: str) -> bool:
    channel = settings.channels.get(name)
    return kind == EVENTS["resolved"] if channel is None else channel.wants(kind)


def _row(incident: IncidentRow, event: IncidentEventRow, kind: str, channel: str) -> OutboxRow:
    key = json.dumps([incident.incident_id, incident.revision, channel])
    by = {"acknowledged_by": event.actor} if event.kind == "acknowledged" else {}
    group = Memo.from_text(incident.group_key).group
    return OutboxRow(
        delivery_id=str(uuid.uuid5(NAMESPACE, key)),
        incident_id=incident.incident_id,
        sequence=incident.revision,
        event=kind,
        channel=channel,
        payload=payload(kind, incident, [], event.at_ms, group=group, **by),
        created_at_ms=event.at_ms,
    )
