"""Indexes, so that lists of a large database stay quick"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

_NEW = {
    "incidents": {
        "incidents_newest": ["opened_at_ms", "incident_id"],
        "incidents_of_status": ["status", "opened_at_ms", "incident_id"],
        "incidents_of_severity": ["severity", "opened_at_ms", "incident_id"],
        "incidents_begun": ["status", "started_at_ms"],
        "incidents_counts": ["status", "severity"],
        "incidents_ended": ["resolved_at_ms"],
    },
    "alerts": {
        "alerts_newest": ["window_start_ms", "alert_id"],
        "alerts_of_series": ["series", "window_start_ms", "alert_id"],
        "alerts_of_model": ["model", "window_start_ms", "alert_id"],
        "alerts_of_status": ["status", "window_start_ms", "alert_id"],
        "alerts_ended": ["window_end_ms"],
    },
    "deliveries": {
        "deliveries_newest": ["created_at_ms", "sequence"],
        "deliveries_of_status": ["status", "created_at_ms", "sequence"],
        "deliveries_of_channel": ["channel", "created_at_ms", "sequence"],
        "deliveries_finished": ["finished_at_ms"],
    },
    "alert_transitions": {"alert_transitions_folded": ["folded", "at_ms"]},
    "rejects": {"rejects_of_reason": ["reason", "id"]},
    "series": {"series_of_model": ["model", "name"]},
}


def upgrade() -> None:
    op.drop_index("ix_incidents_opened_at_ms", "incidents")
    op.drop_index("ix_alerts_series", "alerts")
    op.drop_index("ix_alerts_window_start_ms", "alerts")
    for table, indexes in _NEW.items():
        for name, columns in indexes.items():
            op.create_index(name, table, columns)
