"""What the routes answer, for the description at /api/v1/openapi.json. Rows have the views' names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from storage.names import FEATURE_COLUMNS

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-31T12:00:00Z"])]
Number = float | None


class Reply(BaseModel):
    """Fields may be added; what stands here stays."""


class Problem(Reply):
    """RFC 9457."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no incident '1b2c'"])


class LabelReply(Reply):
    label: str = Field(examples=["false_positive"])
    by: str = Field(examples=["ann"])
    at: Time
    comment: str


class Incident(Reply):
    incident_id: str = Field(examples=["3f6c2a0e-5a5d-5b5e-9a3e-0c4f6f0b2a11"])
    status: str = Field(examples=["open"], description="open, acknowledged or resolved")
    severity: str = Field(examples=["major"], description="warning, major or critical")
    title: str = Field(examples=["High p95 latency on chat-large/assistant"])
    summary: str
    started_at: Time
    opened_at: Time
    acknowledged_at: Time | None
    resolved_at: Time | None
    last_fired_at: Time
    resolution: str | None = Field(examples=["recovered"])
    peak_score: float = Field(examples=[0.97])
    series: list[str] = Field(examples=[["chat-large/assistant"]], description="blast radius")
    series_count: int = Field(examples=[1])
    firing: list[str] = Field(description="alerts that still fire")
    revision: int = Field(examples=[3], description="one more at every change")
    labels: list[LabelReply]


class Feature(Reply):
    feature: str = Field(examples=["latency_p99_ms"])
    observed: Number = Field(None, examples=[4210.0])
    expected: Number = Field(None, examples=[900.0])
    low: Number = None
    high: Number = None
    contribution: Number = Field(None, examples=[0.6])
    windows: int = Field(1, description="the newest ones that were put together to see it")


class Alert(Reply):
    alert_id: str
    incident_id: str | None
    series: str = Field(examples=["chat-large/assistant"])
    model: str
    endpoint: str
    status: str = Field(examples=["firing"], description="firing, resolved or withdrawn")
    window_start: Time
    window_end: Time
    fired_at: Time
    resolved_at: Time | None
    score: float
    tail_probability: float
    severity: str
    rarity: str = Field(examples=["once in 3 months for this series"])
    reason: str = Field(examples=["spike"])
    summary: str
    top_features: list[Feature]
    slices: list[dict[str, Any]]
    exemplars: list[str]
    model_versions: list[str]


class Step(Reply):
    """One transition of an alert, as it was then."""

    at: Time
    kind: str = Field(examples=["fired"], description="fired, updated, resolved or withdrawn")
    severity: str
    score: float
    summary: str
    window_start: Time
    window_end: Time


class AlertDetail(Alert):
    steps: list[Step] = Field(description="oldest first")


class Event(Reply):
    revision: int
    at: Time
    kind: str = Field(examples=["acknowledged"])
    actor: str = Field(examples=["ann"])
    reason: str
    detail: dict[str, Any]


class NoteReply(Reply):
    at: Time
    author: str
    note: str


class Delivery(Reply):
    delivery_id: str
    incident_id: str
    sequence: int
    event: str = Field(examples=["incident.opened"])
    channel: str = Field(examples=["oncall"])
    status: str = Field(examples=["delivered"], description="pending, claimed, delivered or dead")
    due_at: Time
    attempts: int
    created_at: Time
    first_attempt_at: Time | None
    delivered_at: Time | None
    finished_at: Time | None
    last_error: str | None


class Deployment(Reply):
    series: str = Field(examples=["chat-large/assistant"])
    model_version: str = Field(examples=["v7"])
    at: Time
    previous_version: str | None = Field(examples=["v6"], description="the one that most records had before")
    verdict: str | None = Field(
        examples=["worse"],
        description="worse, different, better, alike or unclear; null before a comparison",
    )
    basis: str | None = Field(examples=["same_windows"], description="or before_and_after")
    compared_at: Time | None
    requests: int | None = Field(description="of the new version until then")
    summary: str | None = Field(
        examples=["v7 against v6 after 30 min, 1,240 requests: p95 latency +38%; rest alike"]
    )
    differences: list[dict[str, Any]] | None = Field(
        description="per metric: metric, old, new, change, p, requests, says"
    )


class IncidentDetail(Incident):
    alerts: list[Alert]
    events: list[Event] = Field(description="oldest first")
    deliveries: list[Delivery]
    notes: list[NoteReply]
    deployments: list[Deployment] = Field(description="of its series, from an hour before it began")


class Similar(Reply):
    score: float = Field(ge=0, le=1, examples=[0.82], description="1 = alike in everything compared")
    shared: list[str] = Field(examples=[["series chat-large/assistant", "feature latency_p99_ms"]])
    incident: Incident


class Series(Reply):
    series: str = Field(examples=["chat-large/assistant"])
    model: str
    endpoint: str
    first_seen: Time
    last_record: Time
    live: bool
    windows: int = Field(description="closed so far, purged ones included")
    last_window_start: Time | None
    last_score: Number
    last_is_anomalous: bool | None
    topic: str
    partition: int


class SeriesDetail(Series):
    learning: bool = Field(description="fewer windows than warm_up_windows")
    warm_up_windows: int
    open_incidents: list[Incident]
    deployments: list[Deployment] = Field(description="the newest ten")


Window: type[BaseModel] = create_model(
    "Window",
    __base__=Reply,
    series=(str, ...),
    model=(str, ...),
    endpoint=(str, ...),
    window_start=(Time, ...),
    window_end=(Time, ...),
    **dict.fromkeys(FEATURE_COLUMNS, (Number, ...)),
    score=(float, ...),
    gbdt_score=(Number, ...),
    lstm_score=(Number, ...),
    tail_probability=(Number, ...),
    is_anomalous=(bool, ...),
    revision=(int, Field(description="how often late records amended it")),
    metrics=(dict[str, Number] | None, ...),
)  # type: ignore[call-overload]


class HourMetric(Reply):
    """One of the user's own metrics in an hour."""

    mean: float = Field(description="over the windows, weighted by requests")
    min: float
    max: float
    windows: int = Field(description="in which it was measured")


Hour: type[BaseModel] = create_model(
    "Hour",
    __base__=Reply,
    series=(str, ...),
    model=(str, ...),
    endpoint=(str, ...),
    window_start=(Time, Field(description="start of the hour")),
    window_end=(Time, ...),
    windows=(int, Field(description="summed up")),
    anomalous_windows=(int, ...),
    **dict.fromkeys(FEATURE_COLUMNS, (Number, ...)),
    score=(float, Field(description="the highest")),
    gbdt_score=(Number, ...),
    lstm_score=(Number, ...),
    tail_probability=(Number, Field(description="the lowest")),
    is_anomalous=(bool, Field(description="one of the windows is")),
    metrics=(dict[str, HourMetric] | None, ...),
)  # type: ignore[call-overload]

Revision: type[BaseModel] = create_model(
    "Revision",
    __base__=Reply,
    window_start=(Time, ...),
    revision=(int, Field(description="0 = as it was first stored")),
    replaced_at=(Time, Field(description="wall time")),
    **dict.fromkeys(FEATURE_COLUMNS, (Number, ...)),
    score=(float, ...),
    gbdt_score=(Number, ...),
    lstm_score=(Number, ...),
    tail_probability=(Number, ...),
    is_anomalous=(bool, ...),
    metrics=(dict[str, Number] | None, ...),
)  # type: ignore[call-overload]


class Drift(Reply):
    checked_at: Time
    drifted: bool
    reason: str = Field(examples=["stable"], description="stable, drift or too_few_windows")
    shifted: list[str] = Field(examples=[["latency_p50_ms"]])
    index: dict[str, Number] = Field(
        examples=[{"latency_p50_ms": 0.41}], description="population stability index, median over the series"
    )
    series: int
    compared_from: Time
    compared_until: Time
    trained_at: Time | None


class Model(Reply):
    model_config = ConfigDict(protected_namespaces=())
    version: str | None
    detector: str
    trained_at: Time | None
    status: str = Field(examples=["champion"], description="champion, challenger, refused or retired")
    metrics: dict[str, Any]
    sha256: str | None
    reason: str
    promotion: int | None
    drift: Drift | None = Field(description="the newest comparison with the windows it was trained on")


class Episode(Reply):
    """Windows that would have been one alert."""

    series: str = Field(examples=["chat-large/assistant"])
    start: Time
    end: Time
    peak_score: float


class Judged(Reply):
    budget: float = Field(examples=[4.0], description="false alarms per series and week")
    alerts: int = Field(examples=[3])
    windows: int = Field(examples=[41], description="anomalous ones")
    threshold_score: float = Field(examples=[0.91], description="scores above it are anomalous")
    episodes: list[Episode]


class WhatIf(Reply):
    """What the budget in force makes of the stored windows, first, and what others would."""

    model_config = ConfigDict(protected_namespaces=())
    model_version: str = Field(description="whose calibration judged")
    budgets: list[Judged]


class Recurrence(Reply):
    days: list[str] = Field(examples=[["tue"]])
    start: str = Field(examples=["22:00"])
    duration: str = Field(examples=["14400s"])
    time_zone: str = Field(examples=["Europe/Berlin"])


class Silence(Reply):
    silence_id: str
    matchers: dict[str, str] = Field(examples=[{"model": "chat-large"}])
    starts_at: Time
    ends_at: Time
    created_by: str
    created_at: Time
    comment: str
    recurrence: Recurrence | None


class Source(Reply):
    """One partition of the log."""

    model_config = ConfigDict(protected_namespaces=())
    topic: str
    partition: int
    owner: str | None
    next_offset: int | None = Field(description="everything below is accounted for")
    restart_offset: int | None
    watermark: Time | None = Field(description="event time")
    finished: bool
    records: int
    accepted: int
    rejected: int
    late: int
    duplicates: int
    model_version: str | None
    updated_at: Time
    end_offset: int | None = Field(description="end of the log, where this process reads the partition")
    lag: int | None = Field(description="records behind the end, where that is known")
    stalled: bool | None = Field(
        description="nothing comes from it though it is not read to its end; None where another process reads"
    )


class Rejected(Reply):
    topic: str
    partition: int
    offset: int
    reason: str = Field(examples=["not_json"])
    sample: str
    received_at: Time


class ActionReply(Reply):
    at: Time
    actor: str
    action: str = Field(examples=["silence.created"])
    subject: str
    reason: str
    detail: dict[str, Any]
