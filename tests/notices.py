"""Stored notifications of every kind, with names as hostile as a log can hold."""

from __future__ import annotations

import json
from typing import Any

from monitor.config import ChannelSettings
from storage.types import ClaimedDelivery

HOSTILE = "<!channel> & <https://evil.example|click> @here\x1b[2J\u202e\n*x*"
ROUTING_KEY = "0123456789abcdef0123456789ABCDEF"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KINDS = (
    "incident.opened",
    "incident.updated",
    "incident.reopened",
    "incident.reminder",
    "incident.acknowledged",
    "incident.resolved",
)


def incident(kind: str, **changes: Any) -> dict[str, Any]:
    over = kind == "incident.resolved"
    return {
        "id": "1d3b3f6e-52c6-5d3c-9f2e-6f1de3b4ad01",
        "status": "resolved" if over else "open",
        "severity": "major",
        "title": f"High p95 latency on {HOSTILE}",
        "summary": f"p95 latency of {HOSTILE} is 2 s, usually 0.5 s",
        "started_at": "2026-01-31T12:00:00Z",
        "opened_at": "2026-01-31T12:01:00Z",
        "resolved_at": "2026-01-31T12:09:00Z" if over else None,
        "resolution": "recovered" if over else None,
        "series": [f"{HOSTILE}/{n}" for n in range(8)],
        "group": {"model": HOSTILE},
        "peak_score": 0.97,
        "revision": 3,
        "alerts": [
            {
                "series": f"{HOSTILE}/1",
                "rarity": "once in 3 months for this series",
                "slices": [{"field": "tenant", "value": HOSTILE}],
            }
        ],
        **({"acknowledged_by": HOSTILE} if kind == "incident.acknowledged" else {}),
        **changes,
    }


def stored(kind: str, *, delivery_id: str = "d-1", **changes: Any) -> ClaimedDelivery:
    """One delivery as the outbox hands it over."""
    data: dict[str, Any]
    if kind == "digest":
        rows = [
            {"id": str(n), "title": HOSTILE, "severity": "major", "status": "open", "started_at": "2026"}
            for n in range(80)
        ]
        data = {"title": "Digest", "summary": f"80 incidents {HOSTILE}", "incidents": rows}
    elif kind == "test":
        data = {"title": "A test message", "summary": "A test message"}
    else:
        data = incident(kind)
    body = {"type": kind, "timestamp": "2026-01-31T12:10:00Z", "data": {**data, **changes}}
    payload = json.dumps(body, ensure_ascii=False)
    return ClaimedDelivery(delivery_id, "i", kind, "c", payload, 0, 0, None)


def settings_of(kind: str, url: str, **more: Any) -> ChannelSettings:
    """A channel of any type that leads to `url` (http://host:port/path)."""
    values: dict[str, Any] = {"type": kind, "url": url, "allow_private": True, **more}
    if kind == "apprise":
        values["url"] = url.replace("http://", "json://", 1)
    elif kind == "pagerduty":
        values["secret"] = ROUTING_KEY
    elif kind in ("webhook", "cloudevents", "alertmanager_webhook"):
        values["secret"] = SECRET
    return ChannelSettings(**values)
