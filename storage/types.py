"""Rows that cross the border of the storage package; times are integers, ms since the epoch, UTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.names import FEATURE_COLUMNS as FEATURE_COLUMNS
from storage.names import DatabaseInUse as DatabaseInUse
from storage.names import DatabaseUrlError as DatabaseUrlError
from storage.names import Fenced as Fenced
from storage.names import SchemaTooNew as SchemaTooNew
from storage.names import SeriesConflict as SeriesConflict
from storage.names import TokenExists as TokenExists
from storage.names import UnknownIncident as UnknownIncident

if TYPE_CHECKING:  # reading commands do without numpy
    import numpy as np
    import numpy.typing as npt

    Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a new owner of a partition gets: its fencing epoch and everything the last owner committed."""

    topic: str
    partition: int
    epoch: int
    next_offset: int | None  # None: never read before
    restart_offset: int | None  # lowest offset of any record in a still-open window or pending amendment
    close_offset: int | None  # late records at or above it are not applied yet
    watermark_ms: int | None
    records: int  # totals over all owners: accepted + rejected + late + duplicates = produced
    accepted: int
    rejected: int
    late: int
    duplicates: int
    model_version: str | None  # scorer version in force at next_offset
    series: list[SeriesRow]  # every live series of the partition, with its states
    rejected_offsets: frozenset[int]  # rejected between restart_offset and next_offset
    topic_changed: bool = False  # the stored topic id differs: the topic was deleted and made anew


class SeriesRow(NamedTuple):
    """A commit of many series makes one of each, so it is a tuple."""

    series: str
    model: str
    endpoint: str
    first_seen_ms: int
    last_record_ms: int  # newest event time of a record, decides how long empty windows are made
    window_state: bytes | None = None  # of monitor.windows (known versions and the like)
    detector_state: bytes | None = None  # of detectors (SeriesStates.dump)
    alert_state: bytes | None = None  # of monitor.alerting
    rollout_state: bytes | None = None  # of monitor.rollouts


@dataclass(frozen=True, slots=True)
class ScoredWindows:
    """Closed windows with one common start, one row per series."""

    window_start_ms: int
    window_end_ms: int
    series: Sequence[str]  # m
    features: Float64  # [m, len(FEATURE_COLUMNS)], NaN = nothing to measure
    metrics: Sequence[dict[str, float] | None]  # m, user metrics by bare name
    statistics: Sequence[bytes]  # m, packed values and counts, for training
    sketches: Sequence[bytes | None]  # m, mergeable aggregate for late records; purged at the horizon
    score: Float64  # m, as are the rest
    gbdt_score: Float64
    lstm_score: Float64
    tail_probability: Float64
    is_anomalous: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AlertRow:
    """One firing episode of one series."""

    alert_id: str  # uuid5, deterministic
    series: str
    model: str
    endpoint: str
    status: str  # "firing" | "resolved" | "withdrawn"
    window_start_ms: int  # first anomalous window of the episode
    window_end_ms: int  # end of the newest anomalous window
    fired_at_ms: int  # event time of the decision to fire (end of that window)
    resolved_at_ms: int | None
    score: float  # highest so far, in [0, 1]
    tail_probability: float  # lowest so far
    severity: str  # "warning" | "major" | "critical"
    rarity: str  # "once in 3 months for this series"
    reason: str  # named reason of the decision
    summary: str  # one plain sentence
    top_features: list[dict[str, Any]]  # best first: feature, observed, expected, low, high, contribution
    slices: list[dict[str, Any]]  # guilty slices, best first: field, value, share, reason
    exemplars: list[str]  # request_ids
    model_versions: list[str]  # seen in the anomalous windows


@dataclass(frozen=True, slots=True)
class AlertTransition:
    """A step of an alert, in the order (at_ms, series, kind) in which incidents are built."""

    at_ms: int
    kind: str  # "fired" | "updated" | "resolved" | "withdrawn"
    alert: AlertRow


@dataclass(frozen=True, slots=True)
class IncidentRow:
    incident_id: str  # uuid5, deterministic
    group_key: str
    status: str  # "open" | "acknowledged" | "resolved"
    severity: str
    title: str
    summary: str
    started_at_ms: int  # start of the first anomalous window
    opened_at_ms: int
    acknowledged_at_ms: int | None
    resolved_at_ms: int | None
    last_fired_at_ms: int
    resolution: str | None  # "recovered" | "withdrawn" | "by_person" | ...
    peak_score: float
    series: list[str]  # blast radius, sorted
    firing: list[str]  # alert_ids that still fire, sorted
    revision: int  # +1 at every change


@dataclass(frozen=True, slots=True)
class IncidentEventRow:
    """Nothing about an incident is edited away: every change is a row."""

    incident_id: str
    revision: int
    at_ms: int
    kind: str  # "opened" | "alert_joined" | "severity_raised" | "resolved" | "reopened" | "acknowledged" ...
    actor: str  # "inferwatch" or a person
    reason: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutboxRow:
    delivery_id: str  # uuid5 of incident, revision and channel: stable over retries and restarts
    incident_id: str
    sequence: int  # order inside (incident, channel): an open goes before its resolve
    event: str  # "incident.opened" | "incident.updated" | "incident.resolved" | "incident.reopened" | "test"
    channel: str  # name in the config
    payload: str  # JSON text, complete: a receiver gets the same bytes at every attempt
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class IncidentChanges:
    incidents: list[IncidentRow]  # upserted by incident_id
    events: list[IncidentEventRow]
    links: list[tuple[str, str]]  # (alert_id, incident_id)
    outbox: list[OutboxRow]


@dataclass(frozen=True, slots=True)
class IncidentView:
    """What the fold from alert transitions to incidents may look at."""

    incidents: list[IncidentRow]  # open, acknowledged, and resolved recently enough to be reopened
    alert_incident: dict[str, str]  # alert_id -> incident_id, of alerts linked to these incidents
    silences: list[SilenceRow]
    partitions: dict[str, str] = field(default_factory=dict)  # series -> "topic/partition" it arrives in


@dataclass(frozen=True, slots=True)
class SilenceRow:
    silence_id: str
    matchers: dict[str, str]  # field -> exact value: series, model, endpoint, tenant, region, model_version
    starts_at_ms: int
    ends_at_ms: int
    created_by: str
    comment: str
    recurrence: dict[str, Any] | None = None  # as monitor.recurrence reads it; None = without a break


Fold = Callable[[IncidentView, list[AlertTransition]], IncidentChanges]
"""Pure. Called inside the commit's transaction with the transitions that every partition has passed."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    offset: int
    reason: str
    sample: str
    received_at_ms: int


@dataclass(frozen=True, slots=True)
class RevisedWindow:
    """A stored window that late records have amended."""

    series: str
    window_start_ms: int
    features: Float64  # [len(FEATURE_COLUMNS)]
    metrics: dict[str, float] | None
    statistics: bytes
    sketch: bytes | None
    score: float
    gbdt_score: float
    lstm_score: float
    tail_probability: float
    is_anomalous: bool


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """A model version that a series has not had before, at the start of its first window (event time)."""

    series: str
    model_version: str
    at_ms: int
    previous_version: str = ""  # the one that most records had before


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """What the newest comparison of a deployment says."""

    series: str
    model_version: str
    at_ms: int  # of the deployment
    previous_version: str
    compared_at_ms: int  # event time
    verdict: str  # "worse" | "different" | "better" | "alike" | "unclear"
    basis: str  # "same_windows" | "before_and_after"
    requests: int  # of the new version so far
    summary: str  # one plain sentence
    differences: list[dict[str, Any]]  # metric, old, new, change, p, requests, says


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """What a comparison reads of one window."""

    start_ms: int
    statistics: bytes | None
    is_anomalous: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything that one transaction writes for one partition. Counts are increments."""

    topic: str
    partition: int
    epoch: int
    old_next_offset: int | None
    next_offset: int
    restart_offset: int
    close_offset: int
    watermark_ms: int | None
    committed_at_ms: int
    records: int = 0
    accepted: int = 0
    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    model_version: str | None = None
    windows: list[ScoredWindows] = field(default_factory=list)
    revisions: list[RevisedWindow] = field(default_factory=list)
    series: list[SeriesRow] = field(default_factory=list)  # upserted, with states
    expired_series: list[str] = field(default_factory=list)  # no longer live: states are dropped
    parked: list[SeriesRow] = field(default_factory=list)  # no longer live: states are kept for their return
    rejected_rows: list[RejectedRow] = field(default_factory=list)
    transitions: list[AlertTransition] = field(default_factory=list)  # their alerts are written with them
    alerts: list[AlertRow] = field(default_factory=list)  # as they stand after the transitions
    deployments: list[DeploymentRow] = field(default_factory=list)
    comparisons: list[ComparisonRow] = field(default_factory=list)
    topic_id: str | None = None
    leader_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    delivery_id: str
    incident_id: str
    event: str
    channel: str
    payload: str
    attempts: int  # made before this one
    created_at_ms: int
    first_attempt_at_ms: int | None
    delivered_at_ms: int | None = None  # it had arrived before: this is a repetition


@dataclass(frozen=True, slots=True)
class ModelVersionRow:
    version: str
    detector: str  # "ensemble"
    trained_at_ms: int
    status: str  # "champion" | "challenger" | "refused" | "retired"
    metrics: dict[str, Any]
    artifact: bytes
    sha256: str
    reason: str = ""
