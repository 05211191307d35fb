"""What an outage of the source explains: traffic that is missing because nobody could read it. Pure.

An alert about the source itself has a series of its own, `source:` and what it is about: a partition
(`source:logs/3`), a topic (`source:logs`) or everything (`source:*`). While its incident lasts, and for a
while after it, alerts about missing traffic in what it covers are recorded as ever and told to nobody:
whoever was told of the source knows. An alert about anything else (latency, errors) is not explained by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from storage.types import AlertRow, IncidentRow

SOURCE_PREFIX = "source:"
EVERYTHING = SOURCE_PREFIX + "*"


def inhibitors(
    incidents: Iterable[IncidentRow], alert: AlertRow, place: str | None, at_ms: int, hold_ms: int
) -> list[IncidentRow]:
    """Incidents of the source that explain `alert` at event time `at_ms`.

    `place` is the "topic/partition" of the alert's series, None where it is not known. An incident counts for
    windows that end behind its start, until `hold_ms` after its end.
    """
    if alert.series.startswith(SOURCE_PREFIX) or not lacks_traffic(alert.top_features):
        return []
    covering = {EVERYTHING}
    if place is not None:
        covering |= {SOURCE_PREFIX + place, SOURCE_PREFIX + place.rpartition("/")[0]}
    return [
        incident
        for incident in incidents
        if covering & set(incident.series)
        and incident.resolution != "withdrawn"
        and alert.window_end_ms > incident.started_at_ms
        and (incident.resolved_at_ms is None or at_ms - incident.resolved_at_ms <= hold_ms)
    ]


def lacks_traffic(top_features: list[dict[str, Any]]) -> bool:
    """True when an alert is first of all about fewer requests than expected."""
    if not top_features or top_features[0].get("feature") != "request_count":
        return False
    observed, expected = top_features[0].get("observed"), top_features[0].get("expected")
    return observed == 0 or (observed is not None and expected is not None and observed < expected)
