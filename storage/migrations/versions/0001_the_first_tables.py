"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "alert_transitions",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("at_ms", INTEGER, nullable=False),
        sa.Column("series", sa.String(length=512), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("alert_id", sa.String(length=64), nullable=False),
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("folded", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "alert_transitions_pending",
        "alert_transitions",
        ["at_ms"],
        sqlite_where=sa.text("NOT folded"),
        postgresql_where=sa.text("NOT folded"),
    )
    op.create_index("ix_alert_transitions_alert_id", "alert_transitions", ["alert_id"])

    op.create_table(
        "alerts",
        sa.Column("alert_id", sa.String(length=64), nullable=False),
        sa.Column("series", sa.String(length=512), nullable=False),
        sa.Column("model", sa.String(length=512), nullable=False),
        sa.Column("endpoint", sa.String(length=512), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("window_start_ms", INTEGER, nullable=False),
        sa.Column("window_end_ms", INTEGER, nullable=False),
        sa.Column("fired_at_ms", INTEGER, nullable=False),
        sa.Column("resolved_at_ms", INTEGER, nullable=True),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("tail_probability", sa.Double(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("rarity", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("top_features", sa.Text(), nullable=False),
        sa.Column("slices", sa.Text(), nullable=False),
        sa.Column("exemplars", sa.Text(), nullable=False),
        sa.Column("model_versions", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("alert_id"),
    )
    op.create_index("ix_alerts_series", "alerts", ["series"])
    op.create_index("ix_alerts_window_start_ms", "alerts", ["window_start_ms"])

    op.create_table(
        "deliveries",
        sa.Column("delivery_id", sa.String(length=64), nullable=False),
        sa.Column("incident_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", INTEGER, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("channel", sa.String(length=512), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("due_at_ms", INTEGER, nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("attempts", INTEGER, nullable=False),
        sa.Column("created_at_ms", INTEGER, nullable=False),
        sa.Column("first_attempt_at_ms", INTEGER, nullable=True),
        sa.Column("delivered_at_ms", INTEGER, nullable=True),
        sa.Column("finished_at_ms", INTEGER, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("delivery_id"),
    )
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["due_at_ms"],
        sqlite_where=sa.text("status IN ('pending', 'claimed')"),
        postgresql_where=sa.text("status IN ('pending', 'claimed')"),
    )
    op.create_index("deliveries_order", "deliveries", ["incident_id", "channel", "sequence"])

    op.create_table(
        "deployments",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("series", sa.String(length=512), nullable=False),
        sa.Column("model_version", sa.String(length=512), nullable=False),
        sa.Column("at_ms", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("deployments_key", "deployments", ["series", "model_version", "at_ms"], unique=True)
    op.create_index("ix_deployments_at_ms", "deployments", ["at_ms"])

    op.create_table(
        "disabled_channels",
        sa.Column("channel", sa.String(length=512), nullable=False),
        sa.Column("disabled_at_ms", INTEGER, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("channel"),
    )
    op.create_table(
        "facts",
        sa.Column("key", sa.String(length=512), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "incident_alerts",
        sa.Column("alert_id", sa.String(length=64), nullable=False),
        sa.Column("incident_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("alert_id"),
    )
    op.create_index("ix_incident_alerts_incident_id", "incident_alerts", ["incident_id"])

    op.create_table(
        "incident_cursor",
        sa.Column("id", INTEGER, autoincrement=False, nullable=False),
        sa.Column("folded_to_ms", INTEGER, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "incident_events",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("incident_id", sa.String(length=64), nullable=False),
        sa.Column("revision", INTEGER, nullable=False),
        sa.Column("at_ms", INTEGER, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_incident_events_at_ms", "incident_events", ["at_ms"])
    op.create_index("ix_incident_events_incident_id", "incident_events", ["incident_id"])

    op.create_table(
        "incident_labels",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("incident_id", sa.String(length=64), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("at_ms", INTEGER, nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_incident_labels_incident_id", "incident_labels", ["incident_id"])

    op.create_table(
        "incident_notes",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("incident_id", sa.String(length=64), nullable=False),
        sa.Column("at_ms", INTEGER, nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_incident_notes_incident_id", "incident_notes", ["incident_id"])

    op.create_table(
        "incidents",
        sa.Column("incident_id", sa.String(length=64), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("started_at_ms", INTEGER, nullable=False),
        sa.Column("opened_at_ms", INTEGER, nullable=False),
        sa.Column("acknowledged_at_ms", INTEGER, nullable=True),
        sa.Column("resolved_at_ms", INTEGER, nullable=True),
        sa.Column("last_fired_at_ms", INTEGER, nullable=False),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("peak_score", sa.Double(), nullable=False),
        sa.Column("series", sa.Text(), nullable=False),
        sa.Column("firing", sa.Text(), nullable=False),
        sa.Column("revision", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("incident_id"),
    )
    op.create_index("incidents_status", "incidents", ["status", "resolved_at_ms"])
    op.create_index("ix_incidents_opened_at_ms", "incidents", ["opened_at_ms"])

    op.create_table(
        "models",
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("detector", sa.Text(), nullable=False),
        sa.Column("trained_at_ms", INTEGER, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("promotion", INTEGER, nullable=True),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_index(
        "models_champion",
        "models",
        ["status"],
        unique=True,
        sqlite_where=sa.text("status = 'champion'"),
        postgresql_where=sa.text("status = 'champion'"),
    )
    op.create_index("ix_models_trained_at_ms", "models", ["trained_at_ms"])

    op.create_table(
        "partitions",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String(length=512), nullable=False),
        sa.Column("partition", INTEGER, nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=True),
        sa.Column("leader_epoch", INTEGER, nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("epoch", INTEGER, nullable=False),
        sa.Column("commit_token", sa.Text(), nullable=True),
        sa.Column("next_offset", INTEGER, nullable=True),
        sa.Column("restart_offset", INTEGER, nullable=True),
        sa.Column("close_offset", INTEGER, nullable=True),
        sa.Column("watermark_ms", INTEGER, nullable=True),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.Column("records", INTEGER, nullable=False),
        sa.Column("accepted", INTEGER, nullable=False),
        sa.Column("rejected", INTEGER, nullable=False),
        sa.Column("late", INTEGER, nullable=False),
        sa.Column("duplicates", INTEGER, nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("updated_at_ms", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("partitions_key", "partitions", ["topic", "partition"], unique=True)

    op.create_table(
        "silences",
        sa.Column("silence_id", sa.String(length=64), nullable=False),
        sa.Column("matchers", sa.Text(), nullable=False),
        sa.Column("starts_at_ms", INTEGER, nullable=False),
        sa.Column("ends_at_ms", INTEGER, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at_ms", INTEGER, nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("silence_id"),
    )
    op.create_index("ix_silences_ends_at_ms", "silences", ["ends_at_ms"])

    op.create_table(
        "trainings",
        sa.Column("trained_at_ms", INTEGER, autoincrement=False, nullable=False),
        sa.Column("version", sa.String(length=64), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trained_at_ms"),
    )
    op.create_table(
        "rejects",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("partition_id", INTEGER, nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=False),
        sa.Column("offset", INTEGER, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sample", sa.Text(), nullable=False),
        sa.Column("received_at_ms", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["partition_id"],
            ["partitions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_rejects_received_at_ms", "rejects", ["received_at_ms"])
    op.create_index("rejects_offset", "rejects", ["partition_id", "offset"])

    op.create_table(
        "series",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("model", sa.String(length=512), nullable=False),
        sa.Column("endpoint", sa.String(length=512), nullable=False),
        sa.Column("partition_id", INTEGER, nullable=False),
        sa.Column("first_seen_ms", INTEGER, nullable=False),
        sa.Column("last_record_ms", INTEGER, nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("window_state", sa.LargeBinary(), nullable=True),
        sa.Column("detector_state", sa.LargeBinary(), nullable=True),
        sa.Column("alert_state", sa.LargeBinary(), nullable=True),
        sa.Column("windows", INTEGER, nullable=False),
        sa.Column("last_window_start_ms", INTEGER, nullable=True),
        sa.Column("last_score", sa.Double(), nullable=True),
        sa.Column("last_is_anomalous", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(
            ["partition_id"],
            ["partitions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index(
        "series_live",
        "series",
        ["partition_id"],
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )

    op.create_table(
        "window_revisions",
        sa.Column("series_id", INTEGER, autoincrement=False, nullable=False),
        sa.Column("window_start_ms", INTEGER, autoincrement=False, nullable=False),
        sa.Column("revision", INTEGER, autoincrement=False, nullable=False),
        sa.Column("replaced_at_ms", INTEGER, nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("gbdt_score", sa.Double(), nullable=True),
        sa.Column("lstm_score", sa.Double(), nullable=True),
        sa.Column("tail_probability", sa.Double(), nullable=True),
        sa.Column("is_anomalous", sa.Boolean(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=True),
        sa.Column("statistics", sa.LargeBinary(), nullable=True),
        sa.Column("request_count", sa.Float(), nullable=True),
        sa.Column("error_rate", sa.Float(), nullable=True),
        sa.Column("latency_p50_ms", sa.Float(), nullable=True),
        sa.Column("latency_p95_ms", sa.Float(), nullable=True),
        sa.Column("latency_p99_ms", sa.Float(), nullable=True),
        sa.Column("ttft_p50_ms", sa.Float(), nullable=True),
        sa.Column("ttft_p95_ms", sa.Float(), nullable=True),
        sa.Column("tpot_p50_ms", sa.Float(), nullable=True),
        sa.Column("queue_p95_ms", sa.Float(), nullable=True),
        sa.Column("input_tokens_mean", sa.Float(), nullable=True),
        sa.Column("output_tokens_mean", sa.Float(), nullable=True),
        sa.Column("output_tokens_p95", sa.Float(), nullable=True),
        sa.Column("empty_output_rate", sa.Float(), nullable=True),
        sa.Column("max_output_rate", sa.Float(), nullable=True),
        sa.Column("memory_mb_max", sa.Float(), nullable=True),
        sa.Column("gpu_util_mean", sa.Float(), nullable=True),
        sa.Column("confidence_mean", sa.Float(), nullable=True),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("cost_usd_sum", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("series_id", "window_start_ms", "revision"),
    )
    op.create_table(
        "window_sketches",
        sa.Column("series_id", INTEGER, autoincrement=False, nullable=False),
        sa.Column("window_start_ms", INTEGER, autoincrement=False, nullable=False),
        sa.Column("partition_id", INTEGER, nullable=False),
        sa.Column("sketch", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["partition_id"],
            ["partitions.id"],
        ),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("series_id", "window_start_ms"),
    )
    op.create_index("window_sketches_age", "window_sketches", ["partition_id", "window_start_ms"])

    op.create_table(
        "windows",
        sa.Column("series_id", INTEGER, autoincrement=False, nullable=False),
        sa.Column("window_start_ms", INTEGER, autoincrement=False, nullable=False),
        sa.Column("window_end_ms", INTEGER, nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("gbdt_score", sa.Double(), nullable=True),
        sa.Column("lstm_score", sa.Double(), nullable=True),
        sa.Column("tail_probability", sa.Double(), nullable=True),
        sa.Column("is_anomalous", sa.Boolean(), nullable=False),
        sa.Column("revision", INTEGER, nullable=False),
        sa.Column("metrics", sa.Text(), nullable=True),
        sa.Column("statistics", sa.LargeBinary(), nullable=True),
        sa.Column("request_count", sa.Float(), nullable=True),
        sa.Column("error_rate", sa.Float(), nullable=True),
        sa.Column("latency_p50_ms", sa.Float(), nullable=True),
        sa.Column("latency_p95_ms", sa.Float(), nullable=True),
        sa.Column("latency_p99_ms", sa.Float(), nullable=True),
        sa.Column("ttft_p50_ms", sa.Float(), nullable=True),
        sa.Column("ttft_p95_ms", sa.Float(), nullable=True),
        sa.Column("tpot_p50_ms", sa.Float(), nullable=True),
        sa.Column("queue_p95_ms", sa.Float(), nullable=True),
        sa.Column("input_tokens_mean", sa.Float(), nullable=True),
        sa.Column("output_tokens_mean", sa.Float(), nullable=True),
        sa.Column("output_tokens_p95", sa.Float(), nullable=True),
        sa.Column("empty_output_rate", sa.Float(), nullable=True),
        sa.Column("max_output_rate", sa.Float(), nullable=True),
        sa.Column("memory_mb_max", sa.Float(), nullable=True),
        sa.Column("gpu_util_mean", sa.Float(), nullable=True),
        sa.Column("confidence_mean", sa.Float(), nullable=True),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("cost_usd_sum", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("series_id", "window_start_ms"),
    )
    op.create_index(
        "windows_anomalous",
        "windows",
        ["window_start_ms"],
        sqlite_where=sa.text("is_anomalous"),
        postgresql_where=sa.text("is_anomalous"),
    )
    op.execute("INSERT INTO incident_cursor (id) VALUES (1)")
