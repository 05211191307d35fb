"""The stored payload of a notification, taken apart for channels that show it in a form of their own."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from storage.types import ClaimedDelivery

SEVERITIES = ("warning", "major", "critical")
OVER = "incident.resolved"
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Notice:
    """`kind` is the event ("incident.opened", ..., "digest", "test"), `data` what is said about it."""

    delivery_id: str
    kind: str
    at: str  # RFC 3339 UTC
    data: dict[str, Any]
    dashboard_url: str = ""

    @property
    def is_incident(self) -> bool:
        return self.kind.startswith("incident.")

    @property
    def is_over(self) -> bool:
        return self.kind == OVER

    @property
    def incident_id(self) -> str:
        return str(self.data.get("id", ""))

    @property
    def severity(self) -> str:
        return str(self.data.get("severity", ""))

    @property
    def title(self) -> str:
        return clean(str(self.data.get("title") or self.summary)) or "Inferwatch"

    @property
    def summary(self) -> str:
        return clean(str(self.data.get("summary", "")))

    @property
    def group(self) -> dict[str, str]:
        """What the alerts of the incident share, the same for its whole life: {"model": "chat-large"}."""
        return {str(k): clean(str(v)) for k, v in dict(self.data.get("group") or {}).items()}

    @property
    def headline(self) -> str:
        """`[critical] High p95 latency on chat-large/v1, resolved`."""
        if not self.is_incident:
            return self.title
        news = self.kind.removeprefix("incident.")
        return f"[{self.severity}] {self.title}" + ("" if news == "opened" else f", {news}")

    @property
    def link(self) -> str | None:
        if not self.dashboard_url or not self.is_incident:
            return None
        return f"{self.dashboard_url.rstrip('/')}/incidents/{self.incident_id}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What a person wants to know beside the summary, as (name, value)."""
        found = [("Since", str(self.data.get("started_at", ""))), ("Severity", self.severity)]
        series = [clean(str(name)) for name in self.data.get("series", [])]
        found.append(
            ("Series", ", ".join(series[:5]) + (f" and {len(series) - 5} more" if series[5:] else ""))
        )
        alerts = self.data.get("alerts") or [{}]
        found.append(("Rarity", clean(str(alerts[0].get("rarity", "")))))
        guilty = [f"{part.get('field')} {part.get('value')}" for part in alerts[0].get("slices") or []]
        found.append(("Concentrated in", clean(", ".join(guilty[:3]))))
        if self.is_over:
            found.append(("Ended", f"{self.data.get('resolved_at')} ({self.data.get('resolution')})"))
        if self.data.get("acknowledged_by"):
            found.append(("Acknowledged by", clean(str(self.data["acknowledged_by"]))))
        return [(name, value) for name, value in found if value]


def read(delivery: ClaimedDelivery, dashboard_url: str = "") -> Notice:
    """Raises ValueError for a payload that is no notification."""
    payload = json.loads(delivery.payload)
    if not isinstance(payload, dict) or not isinstance(payload.get("data"), dict):
        raise ValueError("the stored payload is no notification")
    return Notice(
        delivery_id=delivery.delivery_id,
        kind=str(payload.get("type", delivery.event)),
        at=str(payload.get("timestamp", "")),
        data=payload["data"],
        dashboard_url=dashboard_url,
    )


def clean(text: str) -> str:
    """`text` on one line and without control and invisible formatting characters; names come from the log."""
    if text.isascii() and text.isprintable():
        return text.strip()
    kept = "".join(" " if unicodedata.category(c) in _UNSAFE else c for c in text)
    return " ".join(kept.split())


def clip(text: str, limit: int) -> str:
    """At most `limit` characters, the last one an ellipsis where something was left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def encode(value: Any) -> bytes:
    """JSON in UTF-8, the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        "utf-8", errors="replace"
    )
