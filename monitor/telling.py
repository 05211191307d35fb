"""Who is told of an incident, and when: revisions, events and outbox rows.

Every change of an incident has a revision and an event of its own; a delivery's id is made of the revision
and the channel, so that a repeated transaction makes the same rows. What alerts do to an incident is
monitor.incidents'.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor import routing
from monitor.alerting import SEVERITIES
from monitor.config import ChannelSettings, DetectionSettings, RouteSettings, Settings
from monitor.inhibition import inhibitors
from monitor.memo import Memo, about_of, silence_of
from monitor.payloads import payload
from storage.types import (
    AlertRow,
    AlertTransition,
    IncidentChanges,
    IncidentEventRow,
    IncidentRow,
    IncidentView,
    OutboxRow,
)

NAMESPACE = uuid.UUID("0d0e7c35-6f0a-5b53-8e0c-3b7c5f7f2c02")
ACTOR = "inferwatch"

Attend = Callable[[IncidentView, Mapping[str, AlertRow], int], IncidentChanges]


def make_attend(settings: Settings) -> Attend:
    """What event time alone brings about: (view, newest alert per incident, now) -> changes. Pure.

    Whoever was held back is told when that is over; who was told of what nobody acknowledged is reminded.
    """
    detection, channels, routes = settings.detection, dict(settings.channels), tuple(settings.routes)

    def attend(view: IncidentView, alerts: Mapping[str, AlertRow], at_ms: int) -> IncidentChanges:
        work = Telling(detection, channels, routes, view)
        for incident in view.incidents:
            if incident.incident_id in alerts and incident.last_fired_at_ms <= at_ms:
                transition = AlertTransition(at_ms, "updated", alerts[incident.incident_id])
                work.attend(incident.incident_id, transition)
        return work.changes()

    return attend


@dataclass(slots=True)
class Telling:
    """Incidents as a call finds them, and what comes of it."""

    detection: DetectionSettings
    channels: Mapping[str, ChannelSettings]
    routes: Sequence[RouteSettings]
    view: IncidentView
    incidents: dict[str, IncidentRow] = field(init=False)
    memos: dict[str, Memo] = field(init=False)
    alert_incident: dict[str, str] = field(init=False)
    changed: dict[str, None] = field(default_factory=dict)
    events: list[IncidentEventRow] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.incidents = {i.incident_id: i for i in self.view.incidents}
        self.memos = {i.incident_id: Memo.from_text(i.group_key) for i in self.view.incidents}
        self.alert_incident = dict(self.view.alert_incident)

    def changes(self) -> IncidentChanges:
        rows = [
            dataclasses.replace(self.incidents[i], group_key=self.memos[i].to_text())
            for i in sorted(self.changed)
        ]
        return IncidentChanges(rows, self.events, self.links, self.outbox)

    def event(self, incident_id: str, t: AlertTransition, kind: str, reason: str, **detail: Any) -> None:
        """The next revision of the incident, and the event that says why."""
        incident = self.incidents[incident_id]
        incident = self.incidents[incident_id] = dataclasses.replace(incident, revision=incident.revision + 1)
        self.changed[incident_id] = None
        detail = {
            "alert_id": t.alert.alert_id,
            "series": t.alert.series,
            "severity": incident.severity,
            **detail,
        }
        self.events.append(
            IncidentEventRow(incident_id, incident.revision, t.at_ms, kind, ACTOR, reason, detail)
        )

    def tell_if_material(self, incident_id: str, t: AlertTransition) -> None:
        """Severity raised, or twice the blast radius since the newest notification, or someone unaware."""
        incident, memo = self.incidents[incident_id], self.memos[incident_id]
        raised = memo.told_severity != "" and SEVERITIES.index(incident.severity) > SEVERITIES.index(
            memo.told_severity
        )
        wider = memo.told_series > 0 and len(incident.series) >= 2 * memo.told_series
        if raised or wider:
            self.notify(incident_id, t, "incident.updated")
        elif unaware := set(self.channels) - set(memo.aware):
            self.notify(incident_id, t, "incident.updated", among=unaware)

    def attend(self, incident_id: str, t: AlertTransition) -> None:
        """One incident at a later event time: tell who was held back, remind who has not answered."""
        memo, silence = self.memos[incident_id], silence_of(t.alert, self.view.silences, t.at_ms)
        if silence is not None or self._explained_by(t) is not None:
            return
        held = [
            n for n in memo.held if n in self.channels and self._route(n, incident_id, t).action == "send"
        ]
        if held:
            self.event(
                incident_id, t, "notification_released", f"{', '.join(held)}: what held it back is over"
            )
            self.notify(incident_id, t, "incident.updated", among=held)
        status, told = self.incidents[incident_id].status, dict(self.memos[incident_id].told_at)
        due = [
            name
            for name in memo.aware
            if name in self.channels
            and routing.reminder_due(
                told.get(name), t.at_ms, status, self._route(name, incident_id, t), self.routes
            )
            == "due"
        ]
        if due:
            self.event(
                incident_id, t, "reminded", f"still open, and nobody has acknowledged it: {', '.join(due)}"
            )
            self.notify(incident_id, t, "incident.reminder", among=due)

    def _route(self, channel: str, incident_id: str, t: AlertTransition) -> routing.Routed:
        incident, memo = self.incidents[incident_id], self.memos[incident_id]
        routed = routing.decide(channel, about_of(incident.severity, memo, t.alert), t.at_ms, self.routes)
        is_first, age_ms = channel not in memo.heard, t.at_ms - incident.opened_at_ms
        return routing.wait(routed, is_first=is_first, age_ms=age_ms, wait_s=self.detection.group_wait_s)

    def notify(
        self, incident_id: str, t: AlertTransition, event: str, *, among: Collection[str] | None = None
    ) -> None:
        """Outbox rows of this revision, per channel that wants the event.

        A channel hears first that the incident is open (or open again), even when that change was silenced;
        and of its end only when it had heard that. What holds back holds everything but the end.
        """
        memo, ends = self.memos[incident_id], event == "incident.resolved"
        audience = [name for name in sorted(self.channels) if name in memo.aware or not ends]
        if among is not None:
            audience = [name for name in audience if name in among]
        if not ends:
            audience = self._held_back(incident_id, t, audience)
        if not audience:
            return
        memo, incident = self.memos[incident_id], self.incidents[incident_id]
        for name in audience:
            news = "incident.reopened" if name in memo.heard else "incident.opened"
            self._send(name, incident, t, event if name in memo.aware else news)
        keeps_told = among is not None and bool(memo.aware)
        self.memos[incident_id] = dataclasses.replace(
            memo,
            aware=() if ends else tuple(sorted({*memo.aware, *audience})),
            heard=tuple(sorted({*memo.heard, *audience})),
            told_severity=memo.told_severity if keeps_told else incident.severity,
            told_series=memo.told_series if keeps_told else len(incident.series),
            held=() if ends else tuple(name for name in memo.held if name not in audience),
            told_at=tuple(sorted({**dict(memo.told_at), **dict.fromkeys(audience, t.at_ms)}.items())),
        )

    def _explained_by(self, t: AlertTransition) -> IncidentRow | None:
        """The incident of the source that explains this alert, the newest if there are several."""
        hold_ms = int(min(self.detection.group_within_s, self.detection.reopen_within_s) * 1000)
        place = self.view.partitions.get(t.alert.series)
        causes = inhibitors(self.incidents.values(), t.alert, place, t.at_ms, hold_ms)
        return max(causes, key=lambda i: (i.opened_at_ms, i.incident_id), default=None)

    def _held_back(self, incident_id: str, t: AlertTransition, audience: list[str]) -> list[str]:
        """Who of the audience is told now; silences and quiet hours leave an event and a note for later."""
        routed = {name: self._route(name, incident_id, t) for name in audience}
        audience = [name for name in audience if routed[name].action in ("send", "hold")]
        cause = self._explained_by(t) if audience else None
        if cause is not None:
            reason = f"explained by {cause.title}: {cause.summary}"
            self.event(incident_id, t, "notification_inhibited", reason, cause=cause.incident_id)
            return []
        silence = silence_of(t.alert, self.view.silences, t.at_ms)
        quiet = audience if silence else [name for name in audience if routed[name].action == "hold"]
        memo = self.memos[incident_id]
        if silence is not None and audience:
            reason = f"silence {silence.silence_id} of {silence.created_by}: {silence.comment}"
            self.event(incident_id, t, "notification_silenced", reason, silence_id=silence.silence_id)
        elif set(quiet) - set(memo.held):
            reason = ", ".join(f"{routing.why_held(routed[name])} for {name}" for name in quiet)
            self.event(incident_id, t, "notification_held", reason)
        self.memos[incident_id] = dataclasses.replace(memo, held=tuple(sorted({*memo.held, *quiet})))
        return [name for name in audience if name not in quiet]

    def _send(self, channel: str, incident: IncidentRow, t: AlertTransition, event: str) -> None:
        if not self.channels[channel].wants(event):
            return
        delivery_id = uuid.uuid5(NAMESPACE, json.dumps([incident.incident_id, incident.revision, channel]))
        self.outbox.append(
            OutboxRow(
                delivery_id=str(delivery_id),
                incident_id=incident.incident_id,
                sequence=incident.revision,
                event=event,
                channel=channel,
                payload=payload(
                    event, incident, [t.alert], t.at_ms, group=self.memos[incident.incident_id].group
                ),
                created_at_ms=t.at_ms,
            )
        )
