"""Alertmanager: alerts for its API v2, and the webhook (version 4) that it sends itself.

An incident is one alert. Its labels do not change while it lives, but for the severity, which only rises:
what was told under a lower severity ends where the higher one is told. A firing alert carries no end, so
Alertmanager ends it by its own `resolve_timeout` unless it is told again; the outbox sends it again every
`resend_s` while the incident lasts.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from monitor.channels.notice import SEVERITIES, Notice, encode, read
from storage.types import ClaimedDelivery

ALERT_NAME = "InferwatchIncident"
TEST_NAME = "InferwatchTest"
NO_TIME = "0001-01-01T00:00:00Z"
PATH = "/api/v2/alerts"


def api_url(url: str) -> str:
    """The address of the alerts API: what is configured, with the path unless it is there."""
    base = url.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


def alerts(notice: Notice) -> list[dict[str, Any]]:
    """The alert of an incident, first; then those it was known as when it was less severe, ended."""
    if not notice.is_incident:
        return [
            {
                "labels": {"alertname": TEST_NAME, "severity": "warning"},
                "annotations": {"summary": notice.summary},
                "startsAt": notice.at,
            }
        ]
    started = str(notice.data["started_at"])
    annotations = {
        "title": notice.title,
        "summary": notice.summary,
        **{name.lower().replace(" ", "_"): value for name, value in notice.facts},
    }
    link = {} if notice.link is None else {"generatorURL": notice.link}
    ended = str(notice.data.get("resolved_at") or notice.at)
    found = []
    levels = SEVERITIES[: SEVERITIES.index(notice.severity) + 1] if notice.severity in SEVERITIES else ()
    for severity in (*levels[::-1], *(() if levels else (notice.severity,))):
        is_firing = severity == notice.severity and not notice.is_over
        alert = {
            "labels": {**notice.group, **_labels(notice, severity)},
            "annotations": annotations,
            "startsAt": started,
            **({} if is_firing else {"endsAt": ended if notice.is_over else notice.at}),
            **link,
        }
        found.append(alert)
    return found


def _labels(notice: Notice, severity: str) -> dict[str, str]:
    return {"alertname": ALERT_NAME, "incident_id": notice.incident_id, "severity": severity}


def api_body(delivery: ClaimedDelivery, dashboard_url: str = "") -> bytes:
    """What POST /api/v2/alerts takes."""
    return encode(alerts(read(delivery, dashboard_url)))


def webhook_body(delivery: ClaimedDelivery, receiver: str, dashboard_url: str = "") -> bytes:
    """The body of Alertmanager's own webhook, version 4, with one alert: the incident."""
    notice = read(delivery, dashboard_url)
    alert = alerts(notice)[0]
    status = "resolved" if notice.is_over else "firing"
    group = {"alertname": alert["labels"]["alertname"], **notice.group}
    one = {
        "status": status,
        "labels": alert["labels"],
        "annotations": alert["annotations"],
        "startsAt": alert["startsAt"],
        "endsAt": alert.get("endsAt", NO_TIME),
        "generatorURL": alert.get("generatorURL", ""),
        "fingerprint": _fingerprint(alert["labels"]),
    }
    key = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(group.items()))
    return encode(
        {
            "version": "4",
            "groupKey": f"{{}}:{{{key}}}",
            "truncatedAlerts": 0,
            "status": status,
            "receiver": receiver,
            "groupLabels": group,
            "commonLabels": alert["labels"],
            "commonAnnotations": alert["annotations"],
            "externalURL": dashboard_url,
            "alerts": [one],
        }
    )


def _fingerprint(labels: dict[str, str]) -> str:
    """16 hexadecimal digits that are the same for the same labels but for the severity, which may rise."""
    named = sorted((name, value) for name, value in labels.items() if name != "severity")
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
