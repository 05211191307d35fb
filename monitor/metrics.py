"""Every metric this software exposes, in one place. Units stand last in the names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

RECORDS = Counter(
    "inferwatch_records",
    "Records by outcome: accepted, rejected, late, duplicate",
    ["outcome"],
    registry=REGISTRY,
)
REJECTED = Counter("inferwatch_rejected_records", "Rejected records by reason", ["reason"], registry=REGISTRY)
WINDOWS = Counter("inferwatch_windows", "Windows closed and scored", registry=REGISTRY)
REVISIONS = Counter(
    "inferwatch_window_revisions", "Stored windows amended by late records", registry=REGISTRY
)
ALERTS = Counter("inferwatch_alerts", "Alerts fired", ["severity"], registry=REGISTRY)
COMMITS = Counter(
    "inferwatch_commits", "Database commits by outcome: ok, fenced, retried", ["outcome"], registry=REGISTRY
)
COMMIT_SECONDS = Histogram("inferwatch_commit_seconds", "Duration of one commit", registry=REGISTRY)
SCORE_SECONDS = Histogram("inferwatch_score_seconds", "Duration of scoring one batch", registry=REGISTRY)
SOURCE_ERRORS = Counter(
    "inferwatch_source_errors", "Errors of the source by kind", ["kind"], registry=REGISTRY
)
GAPS = Counter(
    "inferwatch_source_gap_records", "Offsets that retention deleted before they were read", registry=REGISTRY
)
DELIVERIES = Counter(
    "inferwatch_deliveries",
    "Delivery attempts by outcome: delivered, failed, dead",
    ["outcome"],
    registry=REGISTRY,
)
DELIVERY_SECONDS = Histogram(
    "inferwatch_delivery_seconds", "Duration of one delivery attempt", registry=REGISTRY
)
SERIES_LIVE = Gauge("inferwatch_series_live", "Series with state in memory", registry=REGISTRY)
SERIES_MOVED = Counter(
    "inferwatch_series_moved",
    "Silent series that made room for others (parked), and came back (returned)",
    ["how"],
    registry=REGISTRY,
)
MEMORY_LOST = Counter(
    "inferwatch_series_memory_lost",
    "Parts of a series' memory that could not be read and begin anew",
    ["part"],
    registry=REGISTRY,
)
OVERFLOW = Counter(
    "inferwatch_series_overflow_records",
    "Records counted under an overflow series, for want of a place for theirs",
    registry=REGISTRY,
)
TRAININGS = Counter(
    "inferwatch_trainings", "Trainings by outcome: promoted, refused, failed", ["outcome"], registry=REGISTRY
)
MODELS_REFUSED = Counter(
    "inferwatch_models_refused",
    "Trials that a registered model did not stand; the one before serves on",
    registry=REGISTRY,
)
DRIFT_INDEX = Gauge(
    "inferwatch_drift_index",
    "Population stability index of a feature, newest day against the windows trained on",
    ["feature"],
    registry=REGISTRY,
)
DRIFT_CHECKS = Counter(
    "inferwatch_drift_checks",
    "Comparisons with the windows trained on: stable, drift, too_few_windows",
    ["reason"],
    registry=REGISTRY,
)
AWAY_SECONDS = Gauge(
    "inferwatch_source_away_seconds",
    "For how long no broker has answered; 0 while one does",
    registry=REGISTRY,
)
QUIET_SECONDS = Gauge(
    "inferwatch_source_quiet_seconds",
    "For how long no record has come from any of this process's partitions of a topic",
    ["topic"],
    registry=REGISTRY,
)
STALLED = Gauge(
    "inferwatch_source_stalled_partitions",
    "Partitions of this process from which nothing comes although they are not read to their end",
    registry=REGISTRY,
)
STALLS = Counter("inferwatch_stalls", "Times the reading loop did not turn for too long", registry=REGISTRY)
HEARTBEAT = Gauge(
    "inferwatch_heartbeat_timestamp_seconds", "Wall time of the newest heartbeat", registry=REGISTRY
)
