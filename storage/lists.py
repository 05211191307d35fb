"""What the lists of storage.queries are made of: tables, the columns that are shown, their order."""

from __future__ import annotations

from storage.names import FEATURE_COLUMNS
from storage.sql import Key, Select, columns_of

ORDERS: dict[str, tuple[Key, ...]] = {
    "incidents": (("incidents.opened_at_ms", True), ("incidents.incident_id", True)),
    "alerts": (("alerts.window_start_ms", True), ("alerts.alert_id", True)),
    "windows": (("windows.window_start_ms", True),),
    "series": (("series.name", False),),
    "deliveries": (
        ("deliveries.created_at_ms", True),
        ("deliveries.sequence", True),
        ("deliveries.delivery_id", False),
    ),
    "deployments": (
        ("deployments.at_ms", True),
        ("deployments.series", False),
        ("deployments.model_version", False),
    ),
    "rejected": (("rejects.id", True),),
    "silences": (("silences.starts_at_ms", True), ("silences.silence_id", False)),
    "models": (("models.trained_at_ms", True), ("models.version", False)),
}
"""List -> the columns of its order, and whether each descends; unique together."""
INCIDENTS = Select("incidents.*", "incidents")
DEPLOYMENTS = Select(
    "series, model_version, at_ms, previous_version, verdict, basis, compared_at_ms, requests, summary, "
    "differences",
    "deployments",
)
INCIDENT_IDS = Select("incidents.incident_id", "incidents")
LINKED = "SELECT incident_alerts.incident_id FROM incident_alerts JOIN alerts USING (alert_id)"
ALERTS = Select(
    "alerts.*, incident_alerts.incident_id",
    "alerts LEFT JOIN incident_alerts ON incident_alerts.alert_id = alerts.alert_id",
)
DELIVERY_COLUMNS = (
    *("delivery_id", "incident_id", "sequence", "event", "channel", "status", "due_at_ms", "attempts"),
    *("created_at_ms", "first_attempt_at_ms", "delivered_at_ms", "finished_at_ms", "last_error"),
    "resend_at_ms",
)
DELIVERIES = Select(columns_of("deliveries", DELIVERY_COLUMNS), "deliveries")
MODEL_COLUMNS = (
    *("version", "detector", "trained_at_ms", "status", "metrics", "sha256", "reason", "promotion"),
)
MODELS = Select(columns_of("models", MODEL_COLUMNS), "models")
SERIES_COLUMNS = (
    *("model", "endpoint", "first_seen_ms", "last_record_ms", "live", "windows"),
    *("last_window_start_ms", "last_score", "last_is_anomalous"),
)
SERIES = Select(
    f"series.name AS series, {columns_of('series', SERIES_COLUMNS)}, partitions.topic, partitions.partition",
    "series JOIN partitions ON partitions.id = series.partition_id",
)
WINDOW_COLUMNS = (
    *("window_start_ms", "window_end_ms", *FEATURE_COLUMNS),
    *("score", "gbdt_score", "lstm_score", "tail_probability", "is_anomalous", "revision", "metrics"),
)
WINDOWS = Select(
    f"series.name AS series, series.model, series.endpoint, {columns_of('windows', WINDOW_COLUMNS)}",
    "windows JOIN series ON series.id = windows.series_id",
)
SEVERITY_RANK = "CASE incidents.severity WHEN 'critical' THEN 0 WHEN 'major' THEN 1 ELSE 2 END"
