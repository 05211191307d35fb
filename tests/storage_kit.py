"""Small commits, alerts and a simple fold for the storage tests."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import numpy as np
from sqlalchemy import Engine, text

from storage.ledger import Ledger
from storage.types import (
    FEATURE_COLUMNS,
    AlertRow,
    AlertTransition,
    Claim,
    Commit,
    DeploymentRow,
    IncidentChanges,
    IncidentEventRow,
    IncidentRow,
    IncidentView,
    OutboxRow,
    RejectedRow,
    RevisedWindow,
    ScoredWindows,
    SeriesRow,
)

MINUTE_MS = 60_000
SPACE = uuid.UUID(int=7)
TABLES = (
    "partitions",
    "series",
    "windows",
    "window_revisions",
    "window_sketches",
    "rejects",
    "alerts",
    "alert_transitions",
    "incidents",
    "incident_events",
    "incident_alerts",
    "deliveries",
    "deployments",
)


def uid(*parts: object) -> str:
    return str(uuid.uuid5(SPACE, repr(parts)))


def simple_fold(view: IncidentView, transitions: list[AlertTransition]) -> IncidentChanges:
    """One incident per model: opened by the first alert that fires, resolved with the last."""
    incidents = {i.incident_id: i for i in view.incidents}
    links = dict(view.alert_incident)
    events: list[IncidentEventRow] = []
    outbox: list[OutboxRow] = []
    new_links: list[tuple[str, str]] = []
    touched: set[str] = set()

    def step(incident: IncidentRow, at_ms: int, kind: str) -> None:
        incident = dataclasses.replace(incident, revision=incident.revision + 1)
        incidents[incident.incident_id] = incident
        touched.add(incident.incident_id)
        events.append(
            IncidentEventRow(incident.incident_id, incident.revision, at_ms, kind, "inferwatch", "r")
        )
        name = uid("delivery", incident.incident_id, incident.revision)
        outbox.append(
            OutboxRow(name, incident.incident_id, incident.revision, f"incident.{kind}", "hook", "{}", at_ms)
        )

    for t in transitions:
        alert = t.alert
        if t.kind == "fired":
            mine = [i for i in incidents.values() if i.group_key == alert.model and i.status != "resolved"]
            if mine:
                old = mine[0]
                firing = sorted({*old.firing, alert.alert_id})
                series = sorted({*old.series, alert.series})
                step(dataclasses.replace(old, firing=firing, series=series), t.at_ms, "updated")
                incident_id = old.incident_id
            else:
                incident_id = uid("incident", alert.alert_id)
                step(new_incident(incident_id, alert, t.at_ms), t.at_ms, "opened")
            links[alert.alert_id] = incident_id
            new_links.append((alert.alert_id, incident_id))
        elif t.kind == "resolved" and alert.alert_id in links:
            old = incidents[links[alert.alert_id]]
            firing = [a for a in old.firing if a != alert.alert_id]
            done = (
                {} if firing else {"status": "resolved", "resolved_at_ms": t.at_ms, "resolution": "recovered"}
            )
            step(
                dataclasses.replace(old, firing=firing, **done), t.at_ms, "updated" if firing else "resolved"
            )
    return IncidentChanges([incidents[i] for i in sorted(touched)], events, new_links, outbox)


def new_incident(incident_id: str, alert: AlertRow, at_ms: int) -> IncidentRow:
    return IncidentRow(
        incident_id=incident_id,
        group_key=alert.model,
        status="open",
        severity=alert.severity,
        title=f"{alert.model} is unusual",
        summary=alert.summary,
        started_at_ms=alert.window_start_ms,
        opened_at_ms=at_ms,
        acknowledged_at_ms=None,
        resolved_at_ms=None,
        last_fired_at_ms=at_ms,
        resolution=None,
        peak_score=alert.score,
        series=[alert.series],
        firing=[alert.alert_id],
        revision=0,
    )


def make_ledger(engine: Engine, fold: Any = simple_fold, **options: Any) -> Ledger:
    return Ledger(
        engine, fold=fold, owner="me", **{"revision_horizon_ms": 900_000, "reopen_ms": 0, **options}
    )


def make_alert(series: str, start_ms: int, **changes: Any) -> AlertRow:
    values: dict[str, Any] = {
        "alert_id": uid("alert", series, start_ms),
        "series": series,
        "model": series.partition("/")[0],
        "endpoint": series.partition("/")[2],
        "status": "firing",
        "window_start_ms": start_ms,
        "window_end_ms": start_ms + MINUTE_MS,
        "fired_at_ms": start_ms + MINUTE_MS,
        "resolved_at_ms": None,
        "score": 0.9,
        "tail_probability": 1e-5,
        "severity": "major",
        "rarity": "once in 3 months for this series",
        "reason": "spike",
        "summary": "latency_p99_ms is 900 instead of 100",
        "top_features": [
            {"feature": "latency_p99_ms", "observed": 900.0, "expected": 100.0, "contribution": 0.7},
            {"feature": "error_rate", "observed": float("nan"), "expected": 0.01, "contribution": 0.3},
        ],
        "slices": [{"field": "tenant", "value": "acme", "share": 0.9, "reason": "errors"}],
        "exemplars": ["req-1"],
        "model_versions": ["v2"],
    }
    return AlertRow(**{**values, **changes})


def fired(series: str, start_ms: int) -> AlertTransition:
    return AlertTransition(start_ms + MINUTE_MS, "fired", make_alert(series, start_ms))


def resolved(series: str, start_ms: int, at_ms: int) -> AlertTransition:
    return AlertTransition(
        at_ms, "resolved", make_alert(series, start_ms, status="resolved", resolved_at_ms=at_ms)
    )


def make_windows(start_ms: int, series: list[str], **changes: Any) -> ScoredWindows:
    m = len(series)
    features = np.full((m, len(FEATURE_COLUMNS)), np.nan)
    features[:, 0], features[:, 4] = 60.0, 123.5
    values: dict[str, Any] = {
        "window_start_ms": start_ms,
        "window_end_ms": start_ms + MINUTE_MS,
        "series": series,
        "features": features,
        "metrics": [{"queue_depth": 3.0}] * m,
        "statistics": [b"statistics"] * m,
        "sketches": [b"sketch"] * m,
        "score": np.full(m, 0.25),
        "gbdt_score": np.full(m, 0.5),
        "lstm_score": np.full(m, np.nan),
        "tail_probability": np.full(m, 0.4),
        "is_anomalous": np.zeros(m, dtype=bool),
    }
    return ScoredWindows(**{**values, **changes})


def make_series(name: str) -> SeriesRow:
    model, _, endpoint = name.partition("/")
    return SeriesRow(name, model, endpoint, 0, 30_000, b"window", b"detector", b"alert")


def make_revision(series: str, start_ms: int, score: float) -> RevisedWindow:
    features = np.full(len(FEATURE_COLUMNS), 1.0)
    return RevisedWindow(series, start_ms, features, None, b"new", b"sketch 2", score, 0.1, 0.1, 0.9, False)


def make_commit(claim: Claim, old: int | None, new: int, **changes: Any) -> Commit:
    values: dict[str, Any] = {
        "topic": claim.topic,
        "partition": claim.partition,
        "epoch": claim.epoch,
        "old_next_offset": old,
        "next_offset": new,
        "restart_offset": old or 0,
        "close_offset": old or 0,
        "watermark_ms": new * MINUTE_MS,
        "committed_at_ms": 1_000_000,
        "records": new - (old or 0),
        "accepted": new - (old or 0),
    }
    return Commit(**{**values, **changes})


def full_commit(claim: Claim) -> Commit:
    """A commit that uses every kind of row: two windows, one of them amended, a reject, an incident."""
    names = ["chat/a", "chat/b"]
    return make_commit(
        claim,
        None,
        10,
        accepted=9,
        rejected=1,
        windows=[make_windows(0, names), make_windows(MINUTE_MS, names)],
        revisions=[make_revision("chat/a", 0, 0.75)],
        series=[make_series(name) for name in names],
        rejected_rows=[RejectedRow(4, "not_json", "bad \x00 \ud800", 5)],
        transitions=[fired("chat/a", 0), resolved("chat/a", 0, 2 * MINUTE_MS)],
        deployments=[DeploymentRow("chat/a", "v2", 0)],
    )


def snapshot(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of results."""
    with engine.connect() as connection:
        return {
            name: sorted((tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))), key=repr)
            for name in TABLES
        }
