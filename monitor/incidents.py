"""From alerts to incidents: a pure fold inside the commit's transaction.

    open -> (acknowledged, by a person) -> resolved, when no alert fires any more -> open again (reopened)

Alerts that share the `group_by` fields, or a guilty slice (version, tenant, region) of the same model, and
follow each other within `group_within_s` are one incident. Everything the fold needs to know later is in
the incident's own row, so the result does not depend on how transitions were cut into calls. Times are
event times. Who is told of a change is monitor.telling's.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from dataclasses import dataclass

from monitor import explain
from monitor.alerting import SEVERITIES
from monitor.config import Settings
from monitor.endings import afterwards, closed, ended
from monitor.memo import MAX_SHARED, Memo, fold_order, memo_of
from monitor.telling import NAMESPACE, Telling
from storage.types import AlertRow, AlertTransition, Fold, IncidentChanges, IncidentRow, IncidentView


def make_fold(settings: Settings) -> Fold:
    """The fold of this configuration: (view, transitions in order) -> changes. Pure."""
    detection, channels, routes = settings.detection, dict(settings.channels), tuple(settings.routes)

    def fold(view: IncidentView, transitions: list[AlertTransition]) -> IncidentChanges:
        work = _Folding(detection, channels, routes, view)
        for transition in sorted(transitions, key=fold_order):
            work.take(transition)
        return work.changes()

    return fold


@dataclass(slots=True)
class _Folding(Telling):
    """One call of the fold."""

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
        self.event(incident_id, t, "opened", alert.summary)
        self.notify(incident_id, t, "incident.opened")
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
            self.event(incident_id, t, "reopened", f"{alert.series} fires again: {alert.summary}")
            self.notify(incident_id, t, "incident.reopened")
            return
        self.event(incident_id, t, "alert_joined", f"{alert.series} fires too: {alert.summary}")
        self.tell_if_material(incident_id, t)

    def _updated(self, t: AlertTransition, incident_id: str) -> None:
        old = self.incidents[incident_id]
        if old.status == "resolved":
            self.event(incident_id, t, *afterwards(t.alert))
            return
        self.incidents[incident_id] = self._raised(old, t.alert)
        raised = self.incidents[incident_id].severity != old.severity
        reason = f"{t.alert.series}: {t.alert.severity}, {t.alert.rarity}"
        self.event(incident_id, t, "severity_raised" if raised else "alert_updated", reason)
        self.tell_if_material(incident_id, t)

    def _compared(self, t: AlertTransition, incident_id: str) -> None:
        """A new model version was found worse: it explains, and is no reason to tell anybody again."""
        old, (before, _, said) = self.incidents[incident_id], t.alert.summary.partition(explain.BLAME)
        if len(old.series) == 1 or old.summary.startswith(before):
            self.incidents[incident_id] = dataclasses.replace(old, summary=t.alert.summary)
        self.event(incident_id, t, "version_compared", f"{t.alert.series}: {said}")

    def _resolved(self, t: AlertTransition, incident_id: str) -> None:
        old = self.incidents[incident_id]
        firing = [a for a in old.firing if a != t.alert.alert_id]
        if firing or old.status == "resolved":
            self.incidents[incident_id] = dataclasses.replace(old, firing=firing)
            self.event(incident_id, t, *ended(t.alert))
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
        self.event(incident_id, t, "alert_withdrawn", reason)

    def _close(self, incident_id: str, t: AlertTransition, resolution: str, reason: str) -> None:
        self.incidents[incident_id] = dataclasses.replace(
            self.incidents[incident_id],
            status="resolved",
            firing=[],
            resolved_at_ms=t.at_ms,
            resolution=resolution,
        )
        self.event(incident_id, t, "resolved", reason, resolution=resolution)
        self.notify(incident_id, t, "incident.resolved")

    def _raised(self, incident: IncidentRow, alert: AlertRow) -> IncidentRow:
        """Severity and peak only rise while an incident lives; the summary is that of the worst alert."""
        worse = SEVERITIES.index(alert.severity) > SEVERITIES.index(incident.severity)
        return dataclasses.replace(
            incident,
            severity=alert.severity if worse else incident.severity,
            summary=alert.summary if worse or alert.score > incident.peak_score else incident.summary,
            peak_score=max(incident.peak_score, alert.score),
        )
