"""Indexes that exist for lists and retention: a list of storage.queries is read in the order of one."""

from __future__ import annotations

from sqlalchemy import Index, MetaData

LISTS: dict[str, dict[str, tuple[str, ...]]] = {
    "incidents": {
        "incidents_newest": ("opened_at_ms", "incident_id"),
        "incidents_of_status": ("status", "opened_at_ms", "incident_id"),
        "incidents_of_severity": ("severity", "opened_at_ms", "incident_id"),
        "incidents_begun": ("status", "started_at_ms"),
        "incidents_counts": ("status", "severity"),
        "incidents_ended": ("resolved_at_ms",),
    },
    "alerts": {
        "alerts_newest": ("window_start_ms", "alert_id"),
        "alerts_of_series": ("series", "window_start_ms", "alert_id"),
        "alerts_of_model": ("model", "window_start_ms", "alert_id"),
        "alerts_of_status": ("status", "window_start_ms", "alert_id"),
        "alerts_ended": ("window_end_ms",),
    },
    "deliveries": {
        "deliveries_newest": ("created_at_ms", "sequence"),
        "deliveries_of_status": ("status", "created_at_ms", "sequence"),
        "deliveries_of_channel": ("channel", "created_at_ms", "sequence"),
        "deliveries_finished": ("finished_at_ms",),
    },
    "alert_transitions": {"alert_transitions_folded": ("folded", "at_ms")},
    "rejects": {"rejects_of_reason": ("reason", "id")},
    "series": {"series_of_model": ("model", "name")},
}


def attach(metadata: MetaData) -> None:
    """Add them to tables that are there."""
    for table, indexes in LISTS.items():
        columns = metadata.tables[table].c
        for name, of in indexes.items():
            Index(name, *(columns[column] for column in of))
