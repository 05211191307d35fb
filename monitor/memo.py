"""What belongs together: alerts of one group, silences that hold for an alert, order in a moment. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from monitor import recurrence, routing
from monitor.inhibition import SOURCE_PREFIX
from storage.types import AlertRow, AlertTransition, SilenceRow

SHARED_FIELDS = ("model_version", "tenant", "region")
MAX_SHARED = 8


@dataclass(frozen=True, slots=True)
class Memo:
    """What an incident remembers beside its columns, kept as JSON in `group_key`."""

    group: tuple[tuple[str, str], ...]  # the group_by fields and their values
    shared: tuple[tuple[str, str, str], ...] = ()  # (model, field, value) of guilty slices
    aware: tuple[str, ...] = ()  # channels that were told that it is open
    heard: tuple[str, ...] = ()  # channels that were ever told of it
    told_severity: str = ""  # as of the newest notification
    told_series: int = 0
    alerts: int = 0  # that were not withdrawn
    held: tuple[str, ...] = ()  # channels that are told later, when quiet hours or a silence are over
    told_at: tuple[tuple[str, int], ...] = ()  # (channel, event time ms of the newest notification)

    def to_text(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_text(text: str) -> Memo:
        """Raises ValueError for text that is not a memo."""
        raw = json.loads(text)
        return Memo(
            group=tuple((str(f), str(v)) for f, v in raw["group"]),
            shared=tuple((str(m), str(f), str(v)) for m, f, v in raw["shared"]),
            aware=tuple(raw["aware"]),
            heard=tuple(raw["heard"]),
            told_severity=raw["told_severity"],
            told_series=raw["told_series"],
            alerts=raw["alerts"],
            held=tuple(raw.get("held", ())),
            told_at=tuple((str(c), int(ms)) for c, ms in raw.get("told_at", ())),
        )

    def is_related(self, other: Memo) -> bool:
        return self.group == other.group or bool(set(self.shared) & set(other.shared))


def memo_of(alert: AlertRow, group_by: Iterable[str]) -> Memo:
    """The group an alert belongs to. Without group_by every series is its own group and shares nothing."""
    slices = {str(s["field"]): str(s["value"]) for s in reversed(alert.slices)}
    known = {"series": alert.series, "model": alert.model, "endpoint": alert.endpoint}
    names = list(group_by)
    if not names:
        return Memo((("series", alert.series),))
    group = tuple((name, known.get(name, slices.get(name, ""))) for name in sorted(names))
    return Memo(group, shared=_shared(alert))


def _shared(alert: AlertRow) -> tuple[tuple[str, str, str], ...]:
    found = {
        (alert.model, str(s["field"]), str(s["value"])) for s in alert.slices if s["field"] in SHARED_FIELDS
    }
    return tuple(sorted(found))


def fold_order(t: AlertTransition) -> tuple[int, bool, str, str]:
    """Of one moment, what befell the source comes first: it may explain the rest."""
    return t.at_ms, not t.alert.series.startswith(SOURCE_PREFIX), t.alert.series, t.kind


def silence_of(alert: AlertRow, silences: Iterable[SilenceRow], at_ms: int) -> SilenceRow | None:
    """The silence in force for the alert at event time `at_ms`, the lowest id if there are several.

    A matcher on tenant or region holds when that slice is guilty, on model_version when it was seen.
    """
    slices = {(str(s["field"]), str(s["value"])) for s in alert.slices}
    slices |= {("model_version", version) for version in alert.model_versions}
    slices |= {("series", alert.series), ("model", alert.model), ("endpoint", alert.endpoint)}
    for silence in sorted(silences, key=lambda s: s.silence_id):
        in_force = silence.starts_at_ms <= at_ms < silence.ends_at_ms
        if in_force and silence.recurrence is not None:
            in_force = recurrence.covers(recurrence.parse(silence.recurrence), at_ms)
        if in_force and silence.matchers and all(m in slices for m in silence.matchers.items()):
            return silence
    return None


def about_of(severity: str, memo: Memo, alert: AlertRow | None) -> routing.About:
    """What routes look at: models and guilty tenants of the whole incident and of the alert at hand."""
    models = {value for name, value in memo.group if name == "model"} | {model for model, _, _ in memo.shared}
    tenants = {value for name, value in memo.group if name == "tenant" and value}
    tenants |= {value for _, name, value in memo.shared if name == "tenant"}
    if alert is not None:
        models.add(alert.model)
        tenants |= {str(part["value"]) for part in alert.slices if part["field"] == "tenant"}
    return routing.About(severity, frozenset(models), frozenset(tenants))
