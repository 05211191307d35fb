"""Reminders, notifications that were held back, and summaries: what time brings about without any record.

Looked at once a minute of event time. A look that is late (the daemon was away) makes one reminder and one
summary, not one for each that was missed.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine

from monitor import routing
from monitor.clock import rfc3339
from monitor.config import RouteSettings, Settings
from monitor.memo import Memo, about_of
from monitor.telling import NAMESPACE, make_attend
from monitor.timespans import last_boundary_ms, minutes
from storage import notices
from storage.notices import Happened
from storage.types import IncidentRow, OutboxRow

STEP_MS = 60_000
MAX_LISTED = 200
NEWS = ("opened", "reopened", "resolved", "acknowledged", "severity_raised")


class Attention:
    """Called every few seconds with the event time that all partitions have passed."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._attend = make_attend(settings)
        self._looked_at_ms: int | None = None

    def look(self, event_time_ms: int | None) -> bool:
        """Whether notifications were written. After an error of the database the next look tries again."""
        if event_time_ms is None:
            return False
        at_ms = event_time_ms // STEP_MS * STEP_MS
        if at_ms == self._looked_at_ms:
            return False
        wrote = 0
        if notices.has_open(self._engine):
            wrote += notices.attend(self._engine, self._attend, at_ms)
        for number, route in enumerate(self._settings.routes):
            if route.digest != "never":
                wrote += sum(self._summarise(number, route, name, at_ms) for name in route.channels)
        self._looked_at_ms = at_ms
        return wrote > 0

    def _summarise(self, number: int, route: RouteSettings, channel: str, at_ms: int) -> bool:
        until_ms = last_boundary_ms(
            at_ms,
            daily=route.digest == "daily",
            at_min=minutes(route.digest_at),
            zone=ZoneInfo(route.time_zone),
        )

        def build(
            from_ms: int, until_ms: int, happened: list[Happened], open_now: list[IncidentRow]
        ) -> OutboxRow | None:
            return digest(channel, self._settings, (from_ms, until_ms), happened, open_now)

        return notices.summarise(self._engine, f"digest {number} {channel}", until_ms, build)


def digest(
    channel: str,
    settings: Settings,
    span: tuple[int, int],
    happened: list[Happened],
    open_now: list[IncidentRow],
) -> OutboxRow | None:
    """The summary of [from, until) for one channel; None when nothing of it happened. Pure."""
    from_ms, until_ms = span

    def is_ours(incident: IncidentRow, at_ms: int) -> bool:
        about = about_of(incident.severity, Memo.from_text(incident.group_key), None)
        return routing.decide(channel, about, at_ms, settings.routes).action == "digest"

    ours = [h for h in happened if h.event.kind in NEWS and is_ours(h.incident, h.event.at_ms)]
    if not ours:
        return None
    incidents = {h.incident.incident_id: h.incident for h in ours}
    waiting = [i for i in open_now if is_ours(i, until_ms - 1)]
    counts = Counter(h.event.kind for h in ours)
    said = ", ".join(f"{counts[kind]} {kind.replace('_', ' ')}" for kind in NEWS if counts[kind])
    title = f"{len(incidents)} incident{'s' if len(incidents) != 1 else ''} since {rfc3339(from_ms)}"
    worst_first = sorted(incidents.values(), key=_rank)
    data = {
        "title": title,
        "summary": f"{said}; {len(waiting)} not resolved now",
        "from": rfc3339(from_ms),
        "until": rfc3339(until_ms),
        "counts": {kind: counts[kind] for kind in NEWS},
        "open_count": len(waiting),
        "incident_count": len(incidents),
        "incidents": [_row(i) for i in worst_first[:MAX_LISTED]],
    }
    body = {"type": "digest", "timestamp": rfc3339(until_ms), "data": data}
    return OutboxRow(
        delivery_id=str(uuid.uuid5(NAMESPACE, json.dumps(["digest", channel, from_ms, until_ms]))),
        incident_id="",
        sequence=until_ms,
        event="digest",
        channel=channel,
        payload=json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        created_at_ms=until_ms,
    )


def _rank(incident: IncidentRow) -> tuple[bool, int, int, str]:
    """Open ones first, then the worst, then the newest."""
    worst = ("critical", "major", "warning").index(incident.severity)
    return incident.status == "resolved", worst, -incident.opened_at_ms, incident.incident_id


def _row(incident: IncidentRow) -> dict[str, Any]:
    return {
        "id": incident.incident_id,
        "status": incident.status,
        "severity": incident.severity,
        "title": incident.title,
        "started_at": rfc3339(incident.started_at_ms),
        "resolved_at": None if incident.resolved_at_ms is None else rfc3339(incident.resolved_at_ms),
        "series_count": len(incident.series),
    }
