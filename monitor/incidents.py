"""From alerts to incidents: a pure fold inside the commit's transaction.

    open -> (acknowledged, by a person) -> resolved, when no alert fires any more -> open again (reopened)

Alerts that share the `group_by` fields, or a guilty slice (version, tenant, region) of the same model, and
follow each other within `group_within_s` are one incident. Everything the fold needs to know later is in
the incident's own row, so the result does not depend on how transitions were cut into calls. Times are
event times. Every change has a revision and an event of its own; a delivery's id is made of the revision
and the channel, so that a repeated transaction makes the same rows.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor import explain, routing
from monitor.alerting import SEVERITIES
from monitor.config import ChannelSettings, DetectionSettings, RouteSettings, Settings
from monitor.endings import afterwards, closed, ended
from monitor.inhibition import inhibitors
from monitor.memo import MAX_SHARED, Memo, about_of, fold_order, memo_of, silence_of
from monitor.payloads import payload
from storage.types import (
    AlertRow,
    AlertTransition,
    Fold,
    IncidentChanges,
    IncidentEventRow,
    IncidentRow,
    IncidentView,
    OutboxRow,
)

NAMESPACE = uuid.UUID("0d0e7c35-6f0a-5b53-8e0c-3b7c5f7f2c02")
ACTOR = "inferwatch"

Attend = Callable[[IncidentView, Mapping[str, AlertRow], int], IncidentChanges]


def make_fold(settings: Settings) -> Fold:
    """The fold of this configuration: (view, transitions in order) -> changes. Pure."""
    detection, channels, routes = settings.detection, dict(settings.channels), tuple(settings.routes)

    def fold(view: IncidentView, transitions: list[AlertTransition]) -> IncidentChanges:
        work = _Work(detection, channels, routes, view)
        for transition in sorted(transitions, key=fold_order):
            work.take(transition)
        return work.changes()

    return fold


def make_attend(settings: Settings) -> Attend:
    """What event time alone brings about: (view, newest alert per incident, now) -> changes. Pure.

    Whoever was held back is told when that is over; who was told of what nobody acknowledged is reminded.
    """
    detection, channels, routes = settings.detection, dict(settings.channels), tuple(settings.routes)

    def attend(view: IncidentView, alerts: Mapping[str, AlertRow], at_ms: int) -> IncidentChanges:
        work = _Work(detection, channels, routes, view)
        for incident in view.incidents:
            if incident.incident_id in alerts and incident.last_fired_at_ms <= at_ms:
                transition = AlertTransition(at_ms, "updated", alerts[incident.incident_id])
                work.attend(incident.incident_id, transition)
        return work.changes()

    return attend


@dataclass(slots=True)
class _Work:
    """One call of the fold."""

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

    def take(self, t: AlertTransition) -> None:
        incident_id = self.alert_incident.get(t.alert.alert_id)
        if t.kind == "fired" and incident_id is None:
            self._fired(t)
        elif incident_id is None or incident_id not in self.incidents:
            return  # the incident ended too long ago to be changed
        elif t.kind == "fired":
            if t.alert.alert_id not in self.incidents[incident_id].firing:  # withdrawn, and true after all
                self._join(t, incident_id, memo_of(t.alert, self.detection.group_by))
        elif t.kind == "resolved":
            self._resolved(t, incident_id)
        elif t.kind == "withdrawn":
            self._withdrawn(t, incident_id)
        elif t.kind == "compared":
            self._compared(t, incident_id)
        else:
            self._updated(t, incident_id)

    # ------------------------------------------------------------------ alerts

    def _fired(self, t: AlertTransition) -> None:
        memo = memo_of(t.alert, self.detection.group_by)
        found = self._related(memo, t.at_ms)
        incident_id = self._open(t, memo) if found is None else found
        self.alert_incident[t.alert.alert_id] = incident_id
        self.links.append((t.alert.alert_id, incident_id))
        if found is not None:
            self._join(t, incident_id, memo)

    def _related(self, memo: Memo, at_ms: int) -> str | None:
        """The incident that a new alert belongs to: an open one before one to reopen, the newest first."""
        group_ms, reopen_ms = self.detection.group_within_s * 1000, self.detection.reopen_within_s * 1000
        found: list[tuple[bool, int, str]] = []
        for i in self.incidents.values():
            if not self.memos[i.incident_id].is_related(memo):
                continue
            if i.status != "resolved" and at_ms - i.last_fired_at_ms <= group_ms:
                found.append((True, i.opened_at_ms, i.incident_id))
            elif (
                i.status == "resolved"
                and i.resolution != "withdrawn"
                and i.resolved_at_ms is not None
                and at_ms - i.resolved_at_ms <= reopen_ms
            ):
                found.append((False, i.resolved_at_ms, i.incident_id))
        return max(found)[2] if found else None

    def _open(self, t: AlertTransition, memo: Memo) -> str:
        alert = t.alert
        name = json.dumps([memo.group, t.at_ms, alert.series, alert.window_start_ms])
        incident_id = str(uuid.uuid5(NAMESPACE, name))
        self.memos[incident_id] = dataclasses.replace(memo, shared=memo.shared[:MAX_SHARED], alerts=1)
        self.incidents[incident_id] = IncidentRow(
            incident_id=incident_id,
            group_key="",
            status="open",
            severity=alert.severity,
            title=explain.title(alert.top_features, [alert.series], alert.model),
            summary=alert.summary,
            started_at_ms=alert.window_start_ms,
            opened_at_ms=t.at_ms,
            acknowledged_at_ms=None,
            resolved_at_ms=None,
            last_fired_at_ms=t.at_ms,
            resolution=None,
            peak_score=alert.score,
            series=[alert.series],
            firing=[alert.alert_id],
            revision=0,
        )
        self._event(incident_id, t, "opened", alert.summary)
        self._notify(incident_id, t, "incident.opened")
        return incident_id

    def _join(self, t: AlertTransition, incident_id: str, memo: Memo) -> None:
        old, known, alert = self.incidents[incident_id], self.memos[incident_id], t.alert
        shared = tuple(sorted({*known.shared, *memo.shared}))[:MAX_SHARED]
        self.memos[incident_id] = dataclasses.replace(known, shared=shared, alerts=known.alerts + 1)
        reopened = old.status == "resolved"
        series = sorted({*old.series, alert.series})
        new = dataclasses.replace(
            old,
            last_fired_at_ms=max(old.last_fired_at_ms, t.at_ms),
            started_at_ms=min(old.started_at_ms, alert.window_start_ms),
            series=series,
            firing=sorted({*old.firing, alert.alert_id}),
            title=explain.title(alert.top_features, series, alert.model)
            if series != old.series or reopened
            else old.title,
        )
        if reopened:
            new = dataclasses.replace(
                new, status="open", acknowledged_at_ms=None, resolved_at_ms=None, resolution=None
            )
        self.incidents[incident_id] = self._raised(new, alert)
        if reopened:
            self._event(incident_id, t, "reopened", f"{alert.series} fires again: {alert.summary}")
            self._notify(incident_id, t, "incident.reopened")
            return
        self._event(incident_id, t, "alert_joined", f"{alert.series} fires too: {alert.summary}")
        self._tell_if_material(incident_id, t)

    def _updated(self, t: AlertTransition, incident_id: str) -> None:
        old = self.incidents[incident_id]
        if old.status == "resolved":
            self._event(incident_id, t, *afterwards(t.alert))
            return
        self.incidents[incident_id] = self._raised(old, t.alert)
        raised = self.incidents[incident_id].severity != old.severity
        reason = f"{t.alert.series}: {t.alert.severity}, {t.alert.rarity}"
        self._event(incident_id, t, "severity_raised" if raised else "alert_updated", reason)
        self._tell_if_material(incident_id, t)

    def _compared(self, t: AlertTransition, incident_id: str) -> None:
        """A new model version was found worse: it explains, and is no reason to tell anybody again."""
        old, (before, _, said) = self.incidents[incident_id], t.alert.summary.partition(explain.BLAME)
        if len(old.series) == 1 or old.summary.startswith(before):
            self.incidents[incident_id] = dataclasses.replace(old, summary=t.alert.summary)
        self._event(incident_id, t, "version_compared", f"{t.alert.series}: {said}")

    def _resolved(self, t: AlertTransition, incident_id: str) -> None:
        old = self.incidents[incident_id]
        firing = [a for a in old.firing if a != t.alert.alert_id]
        if firing or old.status == "resolved":
            self.incidents[incident_id] = dataclasses.replace(old, firing=firing)
            self._event(incident_id, t, *ended(t.alert))
            return
        self._close(incident_id, t, *closed(t.alert))

    def _withdrawn(self, t: AlertTransition, incident_id: str) -> None:
        old, memo = self.incidents[incident_id], self.memos[incident_id]
        memo = self.memos[incident_id] = dataclasses.replace(memo, alerts=memo.alerts - 1)
        firing = [a for a in old.firing if a != t.alert.alert_id]
        reason = f"late records made every window of {t.alert.series} normal"
        self.incidents[incident_id] = dataclasses.replace(old, firing=firing)
        resolution = "withdrawn" if memo.alerts == 0 else "recovered"
        if old.status != "resolved" and not firing:
            self._close(incident_id, t, resolution, reason)
            return
        if old.status == "resolved" and old.resolution == "recovered":
            self.incidents[incident_id] = dataclasses.replace(
                self.incidents[incident_id], resolution=resolution
            )
        self._event(incident_id, t, "alert_withdrawn", reason)

    def _close(self, incident_id: str, t: AlertTransition, resolution: str, reason: str) -> None:
        self.incidents[incident_id] = dataclasses.replace(
            self.incidents[incident_id],
            status="resolved",
            firing=[],
            resolved_at_ms=t.at_ms,
            resolution=resolution,
        )
        self._event(incident_id, t, "resolved", reason, resolution=resolution)
        self._notify(incident_id, t, "incident.resolved")

    def _raised(self, incident: IncidentRow, alert: AlertRow) -> IncidentRow:
        """Severity and peak only rise while an incident lives; the summary is that of the worst alert."""
        worse = SEVERITIES.index(alert.severity) > SEVERITIES.index(incident.severity)
        return dataclasses.replace(
            incident,
            severity=alert.severity if worse else incident.severity,
            summary=alert.summary if worse or alert.score > incident.peak_score else incident.summary,
            peak_score=max(incident.peak_score, alert.score),
        )

    # ------------------------------------------------------- events and notifications

    def _event(self, incident_id: str, t: AlertTransition, kind: str, reason: str, **detail: Any) -> None:
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

    def _tell_if_material(self, incident_id: str, t: AlertTransition) -> None:
        """Severity raised, or twice the blast radius since the newest notification, or someone unaware."""
        incident, memo = self.incidents[incident_id], self.memos[incident_id]
        raised = memo.told_severity != "" and SEVERITIES.index(incident.severity) > SEVERITIES.index(
            memo.told_severity
        )
        wider = memo.told_series > 0 and len(incident.series) >= 2 * memo.told_series
        if raised or wider:
            self._notify(incident_id, t, "incident.updated")
        elif unaware := set(self.channels) - set(memo.aware):
            self._notify(incident_id, t, "incident.updated", among=unaware)

    def attend(self, incident_id: str, t: AlertTransition) -> None:
        """One incident at a later event time: tell who was held back, remind who has not answered."""
        memo, silence = self.memos[incident_id], silence_of(t.alert, self.view.silences, t.at_ms)
        if silence is not None or self._explained_by(t) is not None:
            return
        held = [
            n for n in memo.held if n in self.channels and self._route(n, incident_id, t).action == "send"
        ]
        if held:
            self._event(
                incident_id, t, "notification_released", f"{', '.join(held)}: what held it back is over"
            )
            self._notify(incident_id, t, "incident.updated", among=held)
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
            self._event(
                incident_id, t, "reminded", f"still open, and nobody has acknowledged it: {', '.join(due)}"
            )
            self._notify(incident_id, t, "incident.reminder", among=due)

    def _route(self, channel: str, incident_id: str, t: AlertTransition) -> routing.Routed:
        incident, memo = self.incidents[incident_id], self.memos[incident_id]
        routed = routing.decide(channel, about_of(incident.severity, memo, t.alert), t.at_ms, self.routes)
        is_first, age_ms = channel not in memo.heard, t.at_ms - incident.opened_at_ms
        return routing.wait(routed, is_first=is_first, age_ms=age_ms, wait_s=self.detection.group_wait_s)

    def _notify(
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
            self._event(incident_id, t, "notification_inhibited", reason, cause=cause.incident_id)
            return []
        silence = silence_of(t.alert, self.view.silences, t.at_ms)
        quiet = audience if silence else [name for name in audience if routed[name].action == "hold"]
        memo = self.memos[incident_id]
        if silence is not None and audience:
            reason = f"silence {silence.silence_id} of {silence.created_by}: {silence.comment}"
            self._event(incident_id, t, "notification_silenced", reason, silence_id=silence.silence_id)
        elif set(quiet) - set(memo.held):
            reason = ", ".join(f"{routing.why_held(routed[name])} for {name}" for name in quiet)
            self._event(incident_id, t, "notification_held", reason)
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
