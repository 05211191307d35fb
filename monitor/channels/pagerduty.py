"""PagerDuty Events API v2: trigger, acknowledge and resolve under one dedup_key, the incident's id."""

from __future__ import annotations

from typing import Any

from monitor.channels.notice import Notice, clip, encode, read
from storage.types import ClaimedDelivery

SEVERITIES = {"critical": "critical", "major": "error", "warning": "warning"}
SUMMARY_CHARACTERS = 1_024
DETAIL_CHARACTERS = 4_000
ACTIONS = {"incident.resolved": "resolve", "incident.acknowledged": "acknowledge"}
"""Everything else triggers: an event under a dedup_key that is open adds to that incident."""


def body(delivery: ClaimedDelivery, routing_key: str, dashboard_url: str = "") -> bytes:
    """The event; without a payload where the API takes none."""
    notice = read(delivery, dashboard_url)
    action = ACTIONS.get(notice.kind, "trigger")
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": action,
        "dedup_key": notice.incident_id or f"inferwatch-{notice.kind}-{notice.delivery_id}",
    }
    if action == "trigger":
        event |= {"payload": _payload(notice), "client": "Inferwatch"}
        if notice.link is not None:
            event |= {"client_url": notice.link, "links": [{"href": notice.link, "text": "The incident"}]}
    return encode(event)


def _payload(notice: Notice) -> dict[str, Any]:
    series = [str(name) for name in notice.data.get("series", [])]
    return {
        "summary": clip(notice.title or "Inferwatch", SUMMARY_CHARACTERS),
        "source": clip(", ".join(notice.group.values()) or (series[0] if series else "inferwatch"), 255),
        "severity": SEVERITIES.get(notice.severity, "info"),
        "timestamp": str(notice.data.get("started_at") or notice.at),
        "component": "model",
        "class": notice.kind,
        "custom_details": {
            "summary": clip(notice.summary, DETAIL_CHARACTERS),
            **{name.lower(): clip(value, DETAIL_CHARACTERS) for name, value in notice.facts},
        },
    }
