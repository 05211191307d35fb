"""The text of a notification, as the outbox keeps it and every channel starts from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from monitor.clock import rfc3339
from storage.types import AlertRow, IncidentRow


def payload(
    event: str,
    incident: IncidentRow,
    alerts: Iterable[AlertRow],
    at_ms: int,
    *,
    group: Iterable[tuple[str, str]] = (),
    **more: Any,
) -> str:
    """The JSON text of a notification, in the shape of Standard Webhooks: type, timestamp, data.

    `data.alerts` holds the alert that caused the event; `data.series` is the whole blast radius; `data.group`
    is what its alerts share, the same for its whole life; `more` is added to `data`.
    """
    data = {
        "id": incident.incident_id,
        "status": incident.status,
        "severity": incident.severity,
        "title": incident.title,
        "summary": incident.summary,
        "started_at": rfc3339(incident.started_at_ms),
        "opened_at": rfc3339(incident.opened_at_ms),
        "resolved_at": None if incident.resolved_at_ms is None else rfc3339(incident.resolved_at_ms),
        "resolution": incident.resolution,
        "series": incident.series,
        "group": dict(group),
        "peak_score": incident.peak_score,
        "revision": incident.revision,
        "alerts": [_alert_json(alert) for alert in alerts],
        **more,
    }
    body = {"type": event, "timestamp": rfc3339(at_ms), "data": data}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _alert_json(alert: AlertRow) -> dict[str, Any]:
    return {
        "alert_id": alert.alert_id,
        "status": alert.status,
        "series": alert.series,
        "model": alert.model,
        "endpoint": alert.endpoint,
        "severity": alert.severity,
        "reason": alert.reason,
        "summary": alert.summary,
        "window_start": rfc3339(alert.window_start_ms),
        "window_end": rfc3339(alert.window_end_ms),
        "score": alert.score,
        "rarity": alert.rarity,
        "top_features": alert.top_features,
        "slices": alert.slices,
        "exemplars": alert.exemplars,
        "model_versions": alert.model_versions,
    }
