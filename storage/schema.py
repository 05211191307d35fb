"""Every table. Times are BIGINT milliseconds since the epoch, UTC; JSON is kept as text.

People read the views of storage.views, not these tables: tables may change with any release.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, String, Table, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column

from storage import list_indexes
from storage.names import FEATURE_COLUMNS

NAME_LENGTH = 512  # a text key stays far below the 2,704 bytes of a PostgreSQL index entry
ID_LENGTH = 64
_RESENT, _UNUSUAL = text("resend_at_ms IS NOT NULL"), text("is_anomalous")


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger().with_variant(Integer, "sqlite"), str: Text}  # noqa: RUF012


def _name(**options: object) -> MappedColumn[str]:
    return mapped_column(String(NAME_LENGTH), **options)  # type: ignore[arg-type]


def _id(**options: object) -> MappedColumn[str]:
    return mapped_column(String(ID_LENGTH), **options)  # type: ignore[arg-type]


def table(of: type[Base]) -> Table:
    """The Core table of a mapped class."""
    found = of.__table__
    assert isinstance(found, Table)
    return found


class PartitionTable(Base):
    """How far each partition of the log is accounted for, and who may write its results."""

    __tablename__ = "partitions"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    topic: Mapped[str] = _name()
    partition: Mapped[int]
    topic_id: Mapped[str | None]
    leader_epoch: Mapped[int | None]
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    commit_token: Mapped[str | None]
    next_offset: Mapped[int | None]
    restart_offset: Mapped[int | None]
    close_offset: Mapped[int | None]
    watermark_ms: Mapped[int | None]
    finished: Mapped[bool] = mapped_column(default=False)
    records: Mapped[int] = mapped_column(default=0)
    accepted: Mapped[int] = mapped_column(default=0)
    rejected: Mapped[int] = mapped_column(default=0)
    late: Mapped[int] = mapped_column(default=0)
    duplicates: Mapped[int] = mapped_column(default=0)
    model_version: Mapped[str | None]
    updated_at_ms: Mapped[int]

    __table_args__ = (Index("partitions_key", "topic", "partition", unique=True),)


class SeriesTable(Base):
    __tablename__ = "series"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = _name(unique=True)
    model: Mapped[str] = _name()
    endpoint: Mapped[str] = _name()
    partition_id: Mapped[int] = mapped_column(ForeignKey("partitions.id"))
    first_seen_ms: Mapped[int]
    last_record_ms: Mapped[int]
    live: Mapped[bool]
    window_state: Mapped[bytes | None]
    detector_state: Mapped[bytes | None]
    alert_state: Mapped[bytes | None]
    rollout_state: Mapped[bytes | None]
    windows: Mapped[int] = mapped_column(default=0)  # stored so far, purged ones included
    last_window_start_ms: Mapped[int | None]
    last_score: Mapped[float | None]
    last_is_anomalous: Mapped[bool | None]

    __table_args__ = (
        Index("series_live", "partition_id", sqlite_where=text("live"), postgresql_where=text("live")),
    )


class WindowTable(Base):
    """One row per series and closed window; written by plain inserts, so a duplicate fails loudly.

    Files of SQLite have a foreign key here and in the sketches. For PostgreSQL it would be a look at a row of
    `series` per window, which takes longer than writing it.
    """

    __tablename__ = "windows"

    series_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    window_start_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    window_end_ms: Mapped[int]
    score: Mapped[float]
    gbdt_score: Mapped[float | None]
    lstm_score: Mapped[float | None]
    tail_probability: Mapped[float | None]
    is_anomalous: Mapped[bool]
    revision: Mapped[int] = mapped_column(default=0)
    metrics: Mapped[str | None]
    statistics: Mapped[bytes | None]

    __table_args__ = (
        Index("windows_anomalous", "window_start_ms", sqlite_where=_UNUSUAL, postgresql_where=_UNUSUAL),
    )


class WindowRevisionTable(Base):
    """What a window said before late records amended it."""

    __tablename__ = "window_revisions"

    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), primary_key=True, autoincrement=False)
    window_start_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    replaced_at_ms: Mapped[int]
    score: Mapped[float]
    gbdt_score: Mapped[float | None]
    lstm_score: Mapped[float | None]
    tail_probability: Mapped[float | None]
    is_anomalous: Mapped[bool]
    metrics: Mapped[str | None]
    statistics: Mapped[bytes | None]


for _table in (WindowTable.__table__, WindowRevisionTable.__table__):
    for _feature in FEATURE_COLUMNS:
        _table.append_column(mapped_column(_feature, Float, nullable=True).column)  # type: ignore[attr-defined]


class WindowSketchTable(Base):
    """Mergeable aggregates of windows that late records may still amend."""

    __tablename__ = "window_sketches"

    series_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    window_start_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    partition_id: Mapped[int]
    sketch: Mapped[bytes]

    __table_args__ = (Index("window_sketches_age", "partition_id", "window_start_ms"),)


class RejectTable(Base):
    __tablename__ = "rejects"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    partition_id: Mapped[int] = mapped_column(ForeignKey("partitions.id"))
    topic_id: Mapped[str] = mapped_column(default="")  # "" = not known; offsets begin anew with a topic
    offset: Mapped[int]
    reason: Mapped[str]
    sample: Mapped[str]
    received_at_ms: Mapped[int] = mapped_column(index=True)

    __table_args__ = (Index("rejects_offset", "partition_id", "offset"),)


class AlertTable(Base):
    __tablename__ = "alerts"

    alert_id: Mapped[str] = _id(primary_key=True)
    series: Mapped[str] = _name()
    model: Mapped[str] = _name()
    endpoint: Mapped[str] = _name()
    status: Mapped[str]
    window_start_ms: Mapped[int]
    window_end_ms: Mapped[int]
    fired_at_ms: Mapped[int]
    resolved_at_ms: Mapped[int | None]
    score: Mapped[float]
    tail_probability: Mapped[float]
    severity: Mapped[str]
    rarity: Mapped[str]
    reason: Mapped[str]
    summary: Mapped[str]
    top_features: Mapped[str]
    slices: Mapped[str]
    exemplars: Mapped[str]
    model_versions: Mapped[str]


class TransitionTable(Base):
    """Steps of alerts in the order they are folded into incidents; `folded` ones stay as history."""

    __tablename__ = "alert_transitions"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at_ms: Mapped[int]
    series: Mapped[str] = _name()
    kind: Mapped[str] = mapped_column(String(16))
    alert_id: Mapped[str] = _id(index=True)
    alert: Mapped[str]  # the alert as it was at this step, JSON
    folded: Mapped[bool] = mapped_column(default=False)

    __table_args__ = (
        Index(
            "alert_transitions_pending",
            "at_ms",
            sqlite_where=text("NOT folded"),
            postgresql_where=text("NOT folded"),
        ),
    )


class CursorTable(Base):
    """One row: whoever changes incidents holds its lock."""

    __tablename__ = "incident_cursor"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    folded_to_ms: Mapped[int | None]


class IncidentTable(Base):
    __tablename__ = "incidents"

    incident_id: Mapped[str] = _id(primary_key=True)
    group_key: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    severity: Mapped[str] = mapped_column(String(16))
    title: Mapped[str]
    summary: Mapped[str]
    started_at_ms: Mapped[int]
    opened_at_ms: Mapped[int]
    acknowledged_at_ms: Mapped[int | None]
    resolved_at_ms: Mapped[int | None]
    last_fired_at_ms: Mapped[int]
    resolution: Mapped[str | None]
    peak_score: Mapped[float]
    series: Mapped[str]
    firing: Mapped[str]
    revision: Mapped[int]

    __table_args__ = (Index("incidents_status", "status", "resolved_at_ms"),)


class IncidentEventTable(Base):
    __tablename__ = "incident_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    incident_id: Mapped[str] = _id(index=True)
    revision: Mapped[int]
    at_ms: Mapped[int] = mapped_column(index=True)
    kind: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]


class IncidentAlertTable(Base):
    """Which incident an alert belongs to: one at most."""

    __tablename__ = "incident_alerts"

    alert_id: Mapped[str] = _id(primary_key=True)
    incident_id: Mapped[str] = _id(index=True)


class IncidentLabelTable(Base):
    __tablename__ = "incident_labels"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    incident_id: Mapped[str] = _id(index=True)
    label: Mapped[str]
    at_ms: Mapped[int]
    author: Mapped[str]
    comment: Mapped[str]


class IncidentNoteTable(Base):
    __tablename__ = "incident_notes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    incident_id: Mapped[str] = _id(index=True)
    at_ms: Mapped[int]
    author: Mapped[str]
    note: Mapped[str]


class SilenceTable(Base):
    __tablename__ = "silences"

    silence_id: Mapped[str] = _id(primary_key=True)
    matchers: Mapped[str]
    starts_at_ms: Mapped[int]
    ends_at_ms: Mapped[int] = mapped_column(index=True)
    created_by: Mapped[str]
    created_at_ms: Mapped[int]
    comment: Mapped[str]
    recurrence: Mapped[str | None]  # JSON; NULL = without a break


class DeliveryTable(Base):
    """The outbox. `due_at_ms`: next attempt of a pending row, end of the lease of a claimed one."""

    __tablename__ = "deliveries"

    delivery_id: Mapped[str] = _id(primary_key=True)
    incident_id: Mapped[str] = _id()
    sequence: Mapped[int]
    event: Mapped[str]
    channel: Mapped[str] = _name()
    payload: Mapped[str]
    status: Mapped[str] = mapped_column(String(16), default="pending")
    due_at_ms: Mapped[int]
    lease_owner: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    created_at_ms: Mapped[int]
    first_attempt_at_ms: Mapped[int | None]
    delivered_at_ms: Mapped[int | None]
    finished_at_ms: Mapped[int | None]  # delivered or given up
    last_error: Mapped[str | None]
    resend_at_ms: Mapped[int | None]  # of a delivered one: when the receiver is told again

    __table_args__ = (
        Index("deliveries_resend", "resend_at_ms", sqlite_where=_RESENT, postgresql_where=_RESENT),
        Index("deliveries_order", "incident_id", "channel", "sequence"),
        Index(
            "deliveries_due",
            "due_at_ms",
            sqlite_where=text("status IN ('pending', 'claimed')"),
            postgresql_where=text("status IN ('pending', 'claimed')"),
        ),
    )


class ChannelTable(Base):
    """Channels that a receiver has switched off (410 Gone) or a person has."""

    __tablename__ = "disabled_channels"

    channel: Mapped[str] = _name(primary_key=True)
    disabled_at_ms: Mapped[int]
    reason: Mapped[str]


class FactTable(Base):
    """Small facts that must be decided once and for all daemons alike."""

    __tablename__ = "facts"

    key: Mapped[str] = _name(primary_key=True)
    value: Mapped[str]


class DeploymentTable(Base):
    """A model version that a series had not had before, and how it compares with the one it replaces."""

    __tablename__ = "deployments"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    series: Mapped[str] = _name()
    model_version: Mapped[str] = _name()
    at_ms: Mapped[int] = mapped_column(index=True)
    previous_version: Mapped[str | None]
    verdict: Mapped[str | None] = mapped_column(String(16))
    basis: Mapped[str | None] = mapped_column(String(32))
    compared_at_ms: Mapped[int | None]
    requests: Mapped[int | None]  # of the new version
    summary: Mapped[str | None]
    differences: Mapped[str | None]  # JSON

    __table_args__ = (Index("deployments_key", "series", "model_version", "at_ms", unique=True),)


list_indexes.attach(Base.metadata)
