"""The stable views people and programs read; docs/database.md describes each column."""

from __future__ import annotations

from sqlalchemy import Connection

from storage.names import FEATURE_COLUMNS

VIEWS = (
    "window_history",
    "alert_history",
    "incident_history",
    "delivery_history",
    "rejected_records",
    "model_versions",
    "incident_event_history",
    "deployment_history",
    "silence_history",
    "hour_history",
)


def drop(connection: Connection) -> None:
    for view in reversed(VIEWS):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {view}")


def create(connection: Connection) -> None:
    for statement in statements(connection.dialect.name):
        connection.exec_driver_sql(statement)


def statements(dialect: str) -> list[str]:
    """CREATE VIEW statements, in the order of VIEWS; `dialect` is "sqlite" or "postgresql"."""
    postgres = dialect == "postgresql"

    def time(column: str) -> str:
        if postgres:
            return f"to_timestamp({column} / 1000.0)"
        return f"strftime('%Y-%m-%dT%H:%M:%SZ', {column} / 1000, 'unixepoch')"

    def json(column: str) -> str:
        return f"CAST({column} AS jsonb)" if postgres else column

    if postgres:
        labels = (
            "COALESCE((SELECT jsonb_agg(jsonb_build_object('label', l.label, 'by', l.author, "
            f"'at', to_char({time('l.at_ms')} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
            "'comment', l.comment) ORDER BY l.id) "
            "FROM incident_labels l WHERE l.incident_id = i.incident_id), '[]'::jsonb)"
        )
        series_count = "jsonb_array_length(CAST(i.series AS jsonb))"
    else:
        labels = (
            "(SELECT json_group_array(json_object('label', l.label, 'by', l.author, "
            f"'at', {time('l.at_ms')}, 'comment', l.comment)) "
            "FROM (SELECT * FROM incident_labels ORDER BY id) l WHERE l.incident_id = i.incident_id)"
        )
        series_count = "json_array_length(i.series)"
    features = ", ".join(f"w.{name}" for name in FEATURE_COLUMNS)
    return [
        f"""CREATE VIEW window_history AS
        SELECT s.name AS series, s.model, s.endpoint, {time("w.window_start_ms")} AS window_start,
          {time("w.window_end_ms")} AS window_end, {features}, w.score, w.gbdt_score, w.lstm_score,
          w.tail_probability, w.is_anomalous, w.revision, {json("w.metrics")} AS metrics
        FROM windows w JOIN series s ON s.id = w.series_id""",
        f"""CREATE VIEW alert_history AS
        SELECT a.alert_id, l.incident_id, a.series, {time("a.window_start_ms")} AS window_start,
          {time("a.window_end_ms")} AS window_end, a.score, a.severity, a.reason,
          {json("a.top_features")} AS top_features
        FROM alerts a LEFT JOIN incident_alerts l ON l.alert_id = a.alert_id""",
        f"""CREATE VIEW incident_history AS
        SELECT i.incident_id, i.status, i.severity, i.title, {series_count} AS series_count,
          {time("i.started_at_ms")} AS started_at, {time("i.opened_at_ms")} AS opened_at,
          {time("i.acknowledged_at_ms")} AS acknowledged_at, {time("i.resolved_at_ms")} AS resolved_at,
          i.resolution, i.peak_score, {labels} AS labels
        FROM incidents i""",
        f"""CREATE VIEW delivery_history AS
        SELECT d.delivery_id, d.incident_id, d.event, d.channel, d.status, d.attempts,
          {time("d.first_attempt_at_ms")} AS first_attempt_at, {time("d.delivered_at_ms")} AS delivered_at,
          d.last_error
        FROM deliveries d""",
        f"""CREATE VIEW rejected_records AS
        SELECT p.topic, p.partition, r."offset", r.reason, {time("r.received_at_ms")} AS received_at, r.sample
        FROM rejects r JOIN partitions p ON p.id = r.partition_id""",
        f"""CREATE VIEW model_versions AS
        SELECT m.version, m.detector, {time("m.trained_at_ms")} AS trained_at,
          {json("m.metrics")} AS metrics, m.status
        FROM models m""",
        f"""CREATE VIEW incident_event_history AS
        SELECT e.incident_id, e.revision, {time("e.at_ms")} AS at, e.kind, e.actor, e.reason,
          {json("e.detail")} AS detail
        FROM incident_events e""",
        f"""CREATE VIEW deployment_history AS
        SELECT d.series, d.model_version, {time("d.at_ms")} AS deployed_at, d.previous_version, d.verdict,
          d.basis, {time("d.compared_at_ms")} AS compared_at, d.requests, d.summary,
          {json("d.differences")} AS differences
        FROM deployments d""",
        f"""CREATE VIEW silence_history AS
        SELECT s.silence_id, {json("s.matchers")} AS matchers, {time("s.starts_at_ms")} AS starts_at,
          {time("s.ends_at_ms")} AS ends_at, {json("s.recurrence")} AS recurrence, s.created_by,
          {time("s.created_at_ms")} AS created_at, s.comment
        FROM silences s""",
        f"""CREATE VIEW hour_history AS
        SELECT s.name AS series, s.model, s.endpoint, {time("w.window_start_ms")} AS hour_start,
          w.windows, w.anomalous_windows, {features}, w.score, w.gbdt_score, w.lstm_score, w.tail_probability,
          {json("w.metrics")} AS metrics
        FROM window_hours w JOIN series s ON s.id = w.series_id""",
    ]
