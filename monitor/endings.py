"""What an incident says of an alert that ended: recovered, or learned as the new normal."""

from __future__ import annotations

from monitor.alerting import NEW_NORMAL
from storage.types import AlertRow


def ended(alert: AlertRow) -> tuple[str, str]:
    """(kind, reason) of the event of one alert that ends while its incident goes on."""
    if alert.reason == NEW_NORMAL:
        return "new_normal", _learned(alert)
    return "alert_resolved", f"{alert.series} is back to normal"


def closed(alert: AlertRow) -> tuple[str, str]:
    """(resolution, reason) of the incident that ends with its last alert."""
    if alert.reason == NEW_NORMAL:
        return "new_normal", _learned(alert)
    return "recovered", "every alert of it is back to normal"


def afterwards(alert: AlertRow) -> tuple[str, str]:
    """(kind, reason) of the event of an alert that changes when its incident is resolved already."""
    if alert.reason == NEW_NORMAL:
        return "new_normal", _learned(alert)
    return "alert_updated", "after the incident was resolved"


def _learned(alert: AlertRow) -> str:
    return f"{alert.series} has changed for good: what it does now is its new normal"
