"""The fold from alerts to incidents: grouping, life cycle, silences, notifications, and cuts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import ChannelSettings, DetectionSettings, Settings
from monitor.incidents import make_fold
from storage.types import (
    AlertRow,
    AlertTransition,
    IncidentChanges,
    IncidentEventRow,
    IncidentRow,
    IncidentView,
    OutboxRow,
    SilenceRow,
)

MINUTE = 60_000
ALL = ChannelSettings(url="https://example.org/hook")
ENDS = ChannelSettings(url="https://example.org/hook", events=["incident.resolved"])


def configure(group_by: list[str] | None = None, **channels: ChannelSettings) -> Settings:
    detection = DetectionSettings(group_by=["model"] if group_by is None else group_by)
    return Settings(detection=detection, channels=channels or {"all": ALL})


def alert(
    series: str, start: int, *, severity: str = "warning", status: str = "firing", **more: Any
) -> AlertRow:
    model, _, endpoint = series.partition("/")
    row = AlertRow(
        alert_id=f"{series}@{start}",
        series=series,
        model=model,
        endpoint=endpoint,
        status=status,
        window_start_ms=start * MINUTE,
        window_end_ms=(start + 1) * MINUTE,
        fired_at_ms=(start + 1) * MINUTE,
        resolved_at_ms=None,
        score=0.9,
        tail_probability=1e-5,
        severity=severity,
        rarity="once in 3 weeks for this series",
        reason="spike",
        summary=f"p95 latency of {series} is high",
        top_features=[{"feature": "latency_p95_ms", "observed": 2.0, "expected": 1.0}],
        slices=[],
        exemplars=[],
        model_versions=[],
    )
    return dataclasses.replace(row, **more)


def at(minute: int, kind: str, row: AlertRow) -> AlertTransition:
    return AlertTransition(minute * MINUTE, kind, row)


class Database:
    """The view that the ledger gives, kept in memory."""

    def __init__(self, config: Settings, silences: list[SilenceRow] | None = None) -> None:
        self.fold = make_fold(config)
        self.reopen_ms = int(config.detection.reopen_within_s * 1000)
        self.incidents: dict[str, IncidentRow] = {}
        self.links: dict[str, str] = {}
        self.events: list[IncidentEventRow] = []
        self.outbox: list[OutboxRow] = []
        self.silences = silences or []

    def take(self, *transitions: AlertTransition) -> IncidentChanges:
        if not transitions:
            return IncidentChanges([], [], [], [])
        since = min(t.at_ms for t in transitions) - self.reopen_ms
        visible = [
            i for i in self.incidents.values() if i.resolved_at_ms is None or i.resolved_at_ms >= since
        ]
        ids = {i.incident_id for i in visible} | {
            self.links[t.alert.alert_id] for t in transitions if t.alert.alert_id in self.links
        }
        view = IncidentView(
            [self.incidents[i] for i in sorted(ids)],
            {a: i for a, i in self.links.items() if i in ids},
            self.silences,
        )
        changes = self.fold(view, list(transitions))
        self.incidents.update((i.incident_id, i) for i in changes.incidents)
        self.links.update(changes.links)
        self.events += changes.events
        self.outbox += changes.outbox
        return changes

    @property
    def only(self) -> IncidentRow:
        assert len(self.incidents) == 1
        return next(iter(self.incidents.values()))

    def sent(self) -> list[str]:
        return [row.event.removeprefix("incident.") for row in self.outbox]


def test_life_of_an_incident() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    assert (db.only.status, db.only.title) == ("open", "High p95 latency on m/a")
    db.take(at(6, "resolved", alert("m/a", 0)))
    assert (db.only.status, db.only.resolution, db.only.resolved_at_ms) == (
        "resolved",
        "recovered",
        6 * MINUTE,
    )
    db.take(at(20, "fired", alert("m/a", 19)))
    assert (db.only.status, db.only.resolved_at_ms, db.only.resolution) == ("open", None, None)
    db.take(at(30, "resolved", alert("m/a", 19)))
    db.take(at(90, "fired", alert("m/a", 89)))
    assert len(db.incidents) == 2
    assert db.sent() == ["opened", "resolved", "reopened", "resolved", "opened"]
    assert [e.kind for e in db.events] == ["opened", "resolved", "reopened", "resolved", "opened"]


def test_alerts_of_a_model_are_one_incident_with_a_blast_radius() -> None:
    db = Database(configure())
    for minute, name in enumerate(["m/a", "m/b", "m/c", "m/d", "other/a"]):
        db.take(at(minute + 1, "fired", alert(name, minute)))
    assert len(db.incidents) == 2
    incident = next(i for i in db.incidents.values() if len(i.series) > 1)
    assert incident.series == ["m/a", "m/b", "m/c", "m/d"]
    assert incident.title == "High p95 latency on 4 series of m"
    # 2 and 4 series double what was told before, 3 does not
    assert db.sent() == ["opened", "updated", "updated", "opened"]
    db.take(at(7, "resolved", alert("m/a", 0)), at(7, "resolved", alert("m/b", 1)))
    assert db.incidents[incident.incident_id].status == "open"


def test_a_later_alert_is_another_incident() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    db.take(at(30, "fired", alert("m/b", 29)))
    assert len(db.incidents) == 2


def test_without_group_by_every_series_is_its_own_incident() -> None:
    db = Database(configure([]))
    db.take(at(1, "fired", alert("m/a", 0)), at(1, "fired", alert("m/b", 0)))
    assert len(db.incidents) == 2


def test_a_shared_guilty_slice_joins_series_of_one_model() -> None:
    v7 = [{"field": "model_version", "value": "v7", "share": 1.0}]
    db = Database(configure(["model", "endpoint"]))
    db.take(at(1, "fired", alert("m/a", 0, slices=v7)))
    db.take(at(2, "fired", alert("m/b", 1, slices=v7)))
    db.take(at(3, "fired", alert("m/c", 2)))
    db.take(at(4, "fired", alert("n/a", 3, slices=v7)))
    assert sorted(i.series for i in db.incidents.values()) == [["m/a", "m/b"], ["m/c"], ["n/a"]]


def test_severity_only_rises_and_is_told_once() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    db.take(at(2, "updated", alert("m/a", 0, severity="critical")))
    db.take(at(3, "updated", alert("m/a", 0, severity="critical", score=0.99)))
    assert (db.only.severity, db.only.peak_score) == ("critical", 0.99)
    assert db.sent() == ["opened", "updated"]
    assert [e.kind for e in db.events] == ["opened", "severity_raised", "alert_updated"]


def test_withdrawn_alerts_end_the_incident_and_can_come_back() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    db.take(at(3, "withdrawn", alert("m/a", 0, status="withdrawn")))
    assert (db.only.status, db.only.resolution) == ("resolved", "withdrawn")
    db.take(at(5, "fired", alert("m/a", 4)))
    assert len(db.incidents) == 2, "a withdrawn incident is not reopened by another alert"
    db.take(at(6, "fired", alert("m/a", 0)))
    again = db.incidents[db.links["m/a@0"]]
    assert again.status == "open", "but its own alert, true after all, opens it again"
    assert db.sent() == ["opened", "resolved", "opened", "reopened"]


def test_a_resolved_incident_whose_alert_is_withdrawn_says_so_without_a_second_notification() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    db.take(at(6, "resolved", alert("m/a", 0)))
    db.take(at(8, "withdrawn", alert("m/a", 0)))
    assert db.only.resolution == "withdrawn"
    assert db.sent() == ["opened", "resolved"]


def test_what_a_person_resolved_stays_resolved() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    i = db.only
    db.incidents[i.incident_id] = dataclasses.replace(
        i, status="resolved", resolution="by_person", resolved_at_ms=2 * MINUTE
    )
    db.take(at(3, "updated", alert("m/a", 0, severity="critical")))
    db.take(at(6, "resolved", alert("m/a", 0)))
    assert (db.only.status, db.only.resolution, db.only.firing) == ("resolved", "by_person", [])


def test_a_silence_holds_back_notifications_but_not_the_record() -> None:
    silence = SilenceRow("s1", {"model": "m"}, 0, 10 * MINUTE, "ada", "deploying")
    db = Database(configure(), [silence])
    db.take(at(1, "fired", alert("m/a", 0)))
    assert db.only.status == "open"
    assert db.sent() == []
    assert (db.events[1].kind, db.events[1].reason) == (
        "notification_silenced",
        "silence s1 of ada: deploying",
    )
    db.take(at(6, "resolved", alert("m/a", 0)))
    assert db.sent() == [], "no end of what was never told"
    db.take(at(12, "fired", alert("m/a", 11)))
    assert db.sent() == ["opened"], "the first that a channel hears is that it opened"
    db.silences = [dataclasses.replace(silence, ends_at_ms=100 * MINUTE)]
    db.take(at(20, "resolved", alert("m/a", 11)))
    assert db.sent() == ["opened", "resolved"], "the end follows although it is silent now"


def test_silences_match_exactly() -> None:
    v7 = [{"field": "tenant", "value": "t1", "share": 1.0}]
    for matchers, silent in (
        ({"model": "m", "tenant": "t1"}, True),
        ({"model_version": "v2"}, True),
        ({"tenant": "t2"}, False),
        ({"series": "m"}, False),
        ({}, False),
    ):
        db = Database(configure(), [SilenceRow("s", matchers, 0, 9 * MINUTE, "ada", "")])
        db.take(at(1, "fired", alert("m/a", 0, slices=v7, model_versions=["v1", "v2"])))
        assert bool(db.outbox) != silent, matchers


def test_channels_get_the_events_they_want() -> None:
    db = Database(configure(all=ALL, ends=ENDS))
    db.take(at(1, "fired", alert("m/a", 0)))
    db.take(at(6, "resolved", alert("m/a", 0)))
    assert [(r.channel, r.event) for r in db.outbox] == [
        ("all", "incident.opened"),
        ("all", "incident.resolved"),
        ("ends", "incident.resolved"),
    ]


def test_the_payload_is_complete() -> None:
    db = Database(configure())
    db.take(at(1, "fired", alert("m/a", 0)))
    body = json.loads(db.outbox[0].payload)
    assert (body["type"], body["timestamp"]) == ("incident.opened", "1970-01-01T00:01:00Z")
    data = body["data"]
    assert data["id"] == db.only.incident_id
    assert data["started_at"] == "1970-01-01T00:00:00Z"
    assert data["series"] == ["m/a"]
    assert data["alerts"][0]["rarity"] == "once in 3 weeks for this series"


Transitions = list[AlertTransition]


@st.composite
def histories(draw: st.DrawFn) -> Transitions:
    """Any mixture of valid alert lives, in the order in which the ledger folds."""
    out: Transitions = []
    for series in ("m/a", "m/b", "m/c", "n/a"):
        minute = 0
        for _ in range(draw(st.integers(0, 4))):
            minute += draw(st.integers(1, 40))
            slices = draw(st.sampled_from([[], [{"field": "tenant", "value": "t", "share": 1.0}]]))
            row = alert(series, minute - 1, slices=slices)
            out.append(at(minute, "fired", row))
            for severity in draw(st.lists(st.sampled_from(["warning", "major", "critical"]), max_size=3)):
                minute += draw(st.integers(1, 3))
                worse = max(row.severity, severity, key=["warning", "major", "critical"].index)
                row = dataclasses.replace(row, severity=worse)
                out.append(at(minute, "updated", row))
            end = draw(st.sampled_from(["resolved", "withdrawn", "none"]))
            if end == "none":
                break
            minute += draw(st.integers(1, 30))
            out.append(at(minute, end, dataclasses.replace(row, status=end)))
    return sorted(out, key=lambda t: (t.at_ms, t.alert.series, t.kind))


def test_a_silenced_reopening_is_not_resolved_a_second_time() -> None:
    db = Database(configure(), [SilenceRow("s", {"model": "m"}, 10 * MINUTE, 30 * MINUTE, "ada", "")])
    db.take(at(1, "fired", alert("m/a", 0)))
    db.take(at(6, "resolved", alert("m/a", 0)))
    db.take(at(12, "fired", alert("m/a", 11)))
    db.take(at(18, "resolved", alert("m/a", 11)))
    assert db.sent() == ["opened", "resolved"]
    db.take(at(31, "fired", alert("m/a", 30)))
    assert db.sent() == ["opened", "resolved", "reopened"]


SILENCES = [SilenceRow("s", {"series": "m/b"}, 20 * MINUTE, 60 * MINUTE, "ada", "")]


@settings(deadline=None, max_examples=60)
@given(histories(), st.lists(st.integers(0, 60), max_size=6), st.sampled_from([["model"], ["endpoint"], []]))
def test_cuts_change_nothing(history: Transitions, cuts: list[int], group_by: list[str]) -> None:
    config = configure(group_by, all=ALL, ends=ENDS)
    whole, pieces, single = (Database(config, SILENCES) for _ in range(3))
    whole.take(*history)
    edges = [0, *sorted(c for c in cuts if c < len(history)), len(history)]
    for begin, end in itertools.pairwise(edges):
        pieces.take(*history[begin:end])
    for transition in history:
        single.take(transition)
    for other in (pieces, single):
        assert other.incidents == whole.incidents
        assert other.links == whole.links
        assert other.events == whole.events
        assert other.outbox == whole.outbox


@settings(deadline=None, max_examples=60)
@given(histories(), st.sampled_from([["model"], ["endpoint"], []]))
def test_what_always_holds(history: Transitions, group_by: list[str]) -> None:
    db = Database(configure(group_by, all=ALL, ends=ENDS), SILENCES)
    db.take(*history)
    assert len({r.delivery_id for r in db.outbox}) == len(db.outbox)
    assert set(db.links) == {t.alert.alert_id for t in history}
    still = {t.alert.alert_id for t in history} - {
        t.alert.alert_id for t in history if t.kind in ("resolved", "withdrawn")
    }
    for incident in db.incidents.values():
        assert (
            (incident.status == "resolved") == (not incident.firing) == (incident.resolved_at_ms is not None)
        )
        assert set(incident.firing) <= still
        own = [e for e in db.events if e.incident_id == incident.incident_id]
        assert [e.revision for e in own] == list(range(1, incident.revision + 1))
        life = [e.kind for e in own if e.kind in ("opened", "resolved", "reopened")]
        assert life == ["opened", *["resolved", "reopened"] * len(life)][: len(life)]
        told = [r for r in db.outbox if r.incident_id == incident.incident_id and r.channel == "all"]
        assert [r.sequence for r in told] == sorted({r.sequence for r in told})
        states = [r.event.removeprefix("incident.") for r in told if r.event != "incident.updated"]
        assert states == ["opened", *["resolved", "reopened"] * len(states)][: len(states)]
        if told and incident.status == "resolved":
            assert states[-1] == "resolved", "the end follows every notified open"


def test_a_new_normal_resolves_the_incident_and_is_announced_once() -> None:
    database = Database(configure())
    row = alert("m/a", 0)
    database.take(at(1, "fired", row))
    ended = dataclasses.replace(row, status="resolved", resolved_at_ms=480 * MINUTE, reason="new_normal")
    database.take(at(480, "resolved", ended))
    (incident,) = database.incidents.values()
    assert (incident.status, incident.resolution) == ("resolved", "new_normal")
    told = [e for e in database.events if "new normal" in e.reason]
    assert [e.kind for e in told] == ["resolved"] and "m/a" in told[0].reason
    assert [o.event for o in database.outbox] == ["incident.opened", "incident.resolved"]


def test_a_new_normal_of_one_series_or_of_one_that_recovered_is_an_event() -> None:
    database = Database(configure())
    a, b = alert("m/a", 0), alert("m/b", 0)
    database.take(at(1, "fired", a), at(1, "fired", b))
    learned = dataclasses.replace(a, status="resolved", resolved_at_ms=400 * MINUTE, reason="new_normal")
    database.take(at(400, "resolved", learned))
    (incident,) = database.incidents.values()
    assert incident.status == "open" and database.events[-1].kind == "new_normal"
    recovered = dataclasses.replace(b, status="resolved", resolved_at_ms=410 * MINUTE)
    database.take(at(410, "resolved", recovered))
    database.take(at(480, "updated", dataclasses.replace(recovered, reason="new_normal")))
    (incident,) = database.incidents.values()
    assert (incident.status, incident.resolution) == ("resolved", "recovered")
    assert database.events[-1].kind == "new_normal" and "m/b" in database.events[-1].reason
