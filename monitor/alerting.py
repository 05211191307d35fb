"""From scored windows to alerts: a pure state machine per series.

    inactive -> firing -> resolved (or withdrawn, when late data takes its reason away)

There is no waiting room before firing: the detectors gather weak evidence over windows themselves, so an
anomalous window is already a decision. Hysteresis lies at the other end: an alert resolves only after
`resolve_after_windows` calm windows in a row, and then says it ended with the first of them.

Severity is rarity. With r = window length / tail probability, the mean time between normal windows as
extreme as this one: r < 90 days is a warning, r < 3 years major, beyond it critical. Trouble that goes on
for 30 minutes more counts one step more.

A change that lasts is learned by the detectors in the end, and the window in which that happens has the
reason NEW_NORMAL. It is announced once: an alert that fires ends there and then, one that ended before is
told so, and both have this reason from then on. Where nothing ever fired there is nothing to take back.

State exists only for series that are firing, or were until recently (their windows can still be amended).
"""

from __future__ import annotations

import dataclasses
import uuid
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from detectors.types import Contribution, ScoreBatch
from monitor import explain
from monitor.config import DetectionSettings
from monitor.windows import AmendedWindow, ClosedWindows, SeriesInfo, Slice
from storage.types import AlertRow, AlertTransition

FORMAT = 1
NAMESPACE = uuid.UUID("6f0c9a52-2f0f-5d0e-9c5b-0f5a3f1d7a11")
SEVERITIES = ("warning", "major", "critical")
MAJOR_PERIOD_S = 90 * 86_400.0
CRITICAL_PERIOD_S = 3 * 365.25 * 86_400.0
LONG_TROUBLE_S = 1_800.0
MAX_REMEMBERED_WINDOWS = 64
"""Anomalous windows of an episode that late data can still take back; older ones stand for good."""
KEEP_RESOLVED_MS = 86_400_000
"""Event time a resolved alert stays in memory, the longest revision horizon there is."""
MAX_VERSIONS = 8
NEW_NORMAL = "new_normal"
SETTLING_WINDOWS = 30
"""Anomalous windows without a break behind a new normal that still belong to the change before it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One scored window of one series. Slices and the like are only looked at when it is anomalous."""

    series: str
    model: str
    endpoint: str
    window_start_ms: int
    window_end_ms: int
    score: float  # in [0, 1]
    tail_probability: float  # in (0, 1]
    is_anomalous: bool
    reason: str  # the detector's
    contributions: tuple[Contribution, ...] = ()
    slices: Sequence[Slice] = ()
    exemplars: Sequence[str] = ()
    note: str = ""  # about a new model version, for the sentence

    @property
    def window_s(self) -> float:
        return (self.window_end_ms - self.window_start_ms) / 1000


@dataclass(frozen=True, slots=True)
class AlertState:
    """An alert and what is needed to go on with it; no state means inactive."""

    status: Literal["firing", "resolved"]
    alert: AlertRow
    seen_until_ms: int  # end of the newest closed window, or of the newest window that changed the state
    calm: int = 0  # calm windows in a row
    calm_since_ms: int | None = None  # end of the first of them
    anomalous: tuple[int, ...] = ()  # starts of anomalous windows, ascending, the newest ones
    older: int = 0  # anomalous windows before those

    def to_bytes(self) -> bytes:
        """Compact and exact: `from_bytes(s.to_bytes()) == s`."""
        return msgspec.msgpack.encode((FORMAT, self))

    @staticmethod
    def from_bytes(data: bytes) -> AlertState:
        """Raises ValueError for bytes that this version of the format did not write."""
        try:
            version, state = _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"not an alert state: {error}") from None
        if version != FORMAT:
            raise ValueError(f"alert state of format {version}, this version reads {FORMAT}")
        return state

    @staticmethod
    def of_alert(alert: AlertRow) -> AlertState:
        """Of an alert that fires, where nothing more is known: its first window is the only anomalous one."""
        return AlertState("firing", alert, alert.fired_at_ms, anomalous=(alert.window_start_ms,))

    @property
    def windows(self) -> int:
        """Anomalous windows of the episode."""
        return len(self.anomalous) + self.older


_DECODER = msgspec.msgpack.Decoder(tuple[int, AlertState])

Decision = tuple[AlertState | None, list[AlertTransition], str]
"""New state (None = inactive), what changed for others, and the named reason."""


def decide(state: AlertState | None, seen: Observation, settings: DetectionSettings) -> Decision:
    """One closed window of one series, in the order of time.

    Reasons: "quiet", "fired", "still_anomalous", "severity_raised", "other_top_feature", "calming",
    "recovered", "new_normal", "settling".
    """
    if seen.reason == NEW_NORMAL and state is not None:
        return _learned(state, seen)
    firing = state if state is not None and state.status == "firing" else None
    if firing is None and state is not None and seen.is_anomalous and _settles(state, seen):
        return dataclasses.replace(state, seen_until_ms=seen.window_end_ms), [], "settling"
    if firing is None:
        return _fire(seen, seen.window_end_ms) if seen.is_anomalous else (state, [], "quiet")
    now_ms = max(firing.seen_until_ms, seen.window_end_ms)
    if seen.is_anomalous:
        return _go_on(firing, seen, now_ms)
    calm = firing.calm + 1
    since_ms = firing.calm_since_ms if firing.calm_since_ms is not None else seen.window_end_ms
    calming = dataclasses.replace(firing, calm=calm, calm_since_ms=since_ms, seen_until_ms=now_ms)
    if calm < settings.resolve_after_windows:
        return calming, [], "calming"
    return (
        _end(calming, now_ms, "resolved", since_ms),
        [_ended(calming, now_ms, "resolved", since_ms)],
        "recovered",
    )


def decide_amended(state: AlertState | None, seen: Observation, at_ms: int) -> Decision:
    """A stored window as late records have changed it; `at_ms` is when the change counts.

    Reasons: "unchanged", "fired_late", "joined", "severity_raised", "other_top_feature", "taken_back" (the
    alert has other windows) and "withdrawn" (it has none).
    """
    start_ms = seen.window_start_ms
    known = state is not None and start_ms in state.anomalous
    if state is None or (state.status == "resolved" and start_ms >= state.alert.window_end_ms):
        if not seen.is_anomalous:
            return state, [], "unchanged"
        fired, transitions, _ = _fire(seen, at_ms)
        return fired, transitions, "fired_late"
    if seen.is_anomalous:
        if known or state.status == "resolved":
            return state, [], "unchanged"
        joined, transitions, reason = _go_on(state, seen, max(state.seen_until_ms, at_ms), late=True)
        return joined, transitions, "joined" if reason == "still_anomalous" else reason
    if not known:
        return state, [], "unchanged"
    rest = tuple(s for s in state.anomalous if s != start_ms)
    if rest or state.older:
        return dataclasses.replace(state, anomalous=rest), [], "taken_back"
    now_ms = max(state.seen_until_ms, at_ms)
    return None, [_ended(state, now_ms, "withdrawn", state.alert.resolved_at_ms)], "withdrawn"


def severity(tail_probability: float, window_s: float, trouble_s: float) -> str:
    """The severity of an alert; `trouble_s` is how much anomalous time followed its first window."""
    period_s = explain.return_period_s(tail_probability, window_s)
    level = 2 if period_s >= CRITICAL_PERIOD_S else 1 if period_s >= MAJOR_PERIOD_S else 0
    return SEVERITIES[min(level + (trouble_s >= LONG_TROUBLE_S), 2)]


def _fire(seen: Observation, now_ms: int) -> Decision:
    guilty = explain.guilty_slices(seen.slices, seen.contributions)
    alert = AlertRow(
        alert_id=str(uuid.uuid5(NAMESPACE, f"{seen.window_start_ms} {seen.series}")),
        series=seen.series,
        model=seen.model,
        endpoint=seen.endpoint,
        status="firing",
        window_start_ms=seen.window_start_ms,
        window_end_ms=seen.window_end_ms,
        fired_at_ms=now_ms,
        resolved_at_ms=None,
        score=seen.score,
        tail_probability=seen.tail_probability,
        severity=severity(seen.tail_probability, seen.window_s, 0.0),
        rarity=explain.rarity(seen.tail_probability, seen.window_s),
        reason=seen.reason,
        summary=explain.sentence(
            *(seen.series, seen.contributions, guilty),
            since_ms=seen.window_start_ms,
            window_ms=seen.window_end_ms - seen.window_start_ms,
            score=seen.score,
            note=seen.note,
        ),
        top_features=explain.feature_rows(seen.contributions),
        slices=guilty,
        exemplars=list(seen.exemplars),
        model_versions=_versions([], seen.slices),
    )
    return AlertState.of_alert(alert), [AlertTransition(now_ms, "fired", alert)], "fired"


def _go_on(state: AlertState, seen: Observation, now_ms: int, *, late: bool = False) -> Decision:
    """One more anomalous window; a late one does not end the calm that was seen after it."""
    starts = (*state.anomalous, seen.window_start_ms)
    kept = tuple(sorted(starts))[-MAX_REMEMBERED_WINDOWS:]
    older = state.older + len(starts) - len(kept)
    alert = _worse(state.alert, seen, trouble_s=(len(kept) + older - 1) * seen.window_s)
    reason = "still_anomalous"
    if SEVERITIES.index(alert.severity) > SEVERITIES.index(state.alert.severity):
        reason = "severity_raised"
    elif _top(alert) != _top(state.alert):
        reason = "other_top_feature"
    keeps_calm = late and seen.window_end_ms < (state.calm_since_ms or 0)
    new = AlertState(
        status="firing",
        alert=alert,
        seen_until_ms=now_ms,
        calm=state.calm if keeps_calm else 0,
        calm_since_ms=state.calm_since_ms if keeps_calm else None,
        anomalous=kept,
        older=older,
    )
    told = [AlertTransition(now_ms, "updated", alert)] if reason != "still_anomalous" else []
    return new, told, reason


def _worse(old: AlertRow, seen: Observation, *, trouble_s: float) -> AlertRow:
    """The alert with one more window: peaks rise, and the explanation is that of the highest score."""
    tail = min(old.tail_probability, seen.tail_probability)
    level = max(old.severity, severity(tail, seen.window_s, trouble_s), key=SEVERITIES.index)
    alert = dataclasses.replace(
        old,
        window_start_ms=min(old.window_start_ms, seen.window_start_ms),
        window_end_ms=max(old.window_end_ms, seen.window_end_ms),
        score=max(old.score, seen.score),
        tail_probability=tail,
        severity=level,
        rarity=explain.rarity(tail, seen.window_s),
        model_versions=_versions(old.model_versions, seen.slices),
    )
    if seen.score <= old.score:
        return alert
    guilty = explain.guilty_slices(seen.slices, seen.contributions)
    return dataclasses.replace(
        alert,
        reason=seen.reason,
        summary=explain.sentence(
            *(seen.series, seen.contributions, guilty),
            since_ms=alert.window_start_ms,
            window_ms=seen.window_end_ms - seen.window_start_ms,
            score=seen.score,
            note=seen.note,
        ),
        top_features=explain.feature_rows(seen.contributions),
        slices=guilty,
        exemplars=list(seen.exemplars) or old.exemplars,
    )


def _learned(state: AlertState, seen: Observation) -> Decision:
    """The level of the series is its new normal: its alert ends, or has ended for good."""
    now_ms = max(state.seen_until_ms, seen.window_end_ms)
    if state.alert.reason == NEW_NORMAL:
        return dataclasses.replace(state, seen_until_ms=now_ms), [], "quiet"
    named = dataclasses.replace(state, alert=dataclasses.replace(state.alert, reason=NEW_NORMAL))
    if state.status == "resolved":
        told = AlertTransition(now_ms, "updated", named.alert)
        return dataclasses.replace(named, seen_until_ms=now_ms), [told], NEW_NORMAL
    ended = _end(named, now_ms, "resolved", now_ms)
    return ended, [_ended(named, now_ms, "resolved", now_ms)], NEW_NORMAL


def _settles(state: AlertState, seen: Observation) -> bool:
    """True for a window that goes on, without a calm one between, from where a new normal was announced."""
    announced_ms = state.alert.resolved_at_ms or 0
    return (
        state.alert.reason == NEW_NORMAL
        and seen.window_start_ms <= state.seen_until_ms
        and seen.window_end_ms - announced_ms <= SETTLING_WINDOWS * seen.window_s * 1000
    )


def _end(state: AlertState, now_ms: int, status: Literal["resolved"], at_ms: int) -> AlertState:
    alert = dataclasses.replace(state.alert, status=status, resolved_at_ms=at_ms)
    return dataclasses.replace(state, status=status, alert=alert, seen_until_ms=now_ms)


def _ended(state: AlertState, now_ms: int, status: str, at_ms: int | None) -> AlertTransition:
    ended_ms = now_ms if at_ms is None else at_ms
    return AlertTransition(
        now_ms, status, dataclasses.replace(state.alert, status=status, resolved_at_ms=ended_ms)
    )


def _top(alert: AlertRow) -> str | None:
    return str(alert.top_features[0]["feature"]) if alert.top_features else None


def _versions(known: Sequence[str], slices: Sequence[Slice]) -> list[str]:
    return sorted({*known, *(s.value for s in slices if s.field == "model_version")})[:MAX_VERSIONS]


def step(
    states: dict[str, AlertState],
    closed: ClosedWindows,
    scores: ScoreBatch,
    settings: DetectionSettings,
    *,
    note: Callable[[str, int], str] = lambda *_: "",
) -> list[AlertTransition]:
    """All windows of one batch; `states` changes in place. Normal windows of inactive series cost nothing.

    `note`: (series, event time) -> what its newest model version is known for, "" for nothing.
    """
    names = closed.batch.series
    rows = set(np.flatnonzero(scores.is_anomalous).tolist())
    rows |= {row for row, reason in enumerate(scores.reason) if reason == NEW_NORMAL}
    end_ms = closed.batch.window_start_ms + closed.batch.window_ms
    for series, state in list(states.items()):
        if state.status == "resolved":
            if end_ms - state.seen_until_ms > KEEP_RESOLVED_MS:
                del states[series]
            continue
        row = bisect_left(names, series)
        if row < len(names) and names[row] == series:
            rows.add(row)
    transitions: list[AlertTransition] = []
    for row in sorted(rows):
        seen = _observe(closed, scores, row)
        if seen.is_anomalous:
            seen = dataclasses.replace(seen, note=note(seen.series, seen.window_end_ms))
        new, told, _ = decide(states.get(names[row]), seen, settings)
        if new is not None:
            states[names[row]] = new
        transitions += told
    return transitions


def amend(
    states: dict[str, AlertState], amended: AmendedWindow, scores: ScoreBatch, settings: DetectionSettings
) -> list[AlertTransition]:
    """A stored window was amended and scored again; `states` changes in place."""
    seen = _observe(amended, scores, 0)
    new, told, _ = decide_amended(states.get(seen.series), seen, amended.at_ms)
    if new is None:
        states.pop(seen.series, None)
    else:
        states[seen.series] = new
    return told


def expire(states: dict[str, AlertState], series: str, at_ms: int) -> list[AlertTransition]:
    """The series is no longer live: a firing alert of it resolves at `at_ms`."""
    state = states.pop(series, None)
    if state is None or state.status == "resolved":
        return []
    at_ms = max(at_ms, state.seen_until_ms)
    return [_ended(state, at_ms, "resolved", at_ms)]


def _observe(windows: ClosedWindows | AmendedWindow, scores: ScoreBatch, row: int) -> Observation:
    batch = windows.batch
    info: SeriesInfo = windows.infos[row] if isinstance(windows, ClosedWindows) else windows.info
    anomalous = bool(scores.is_anomalous[row])
    contributions = scores.explanations[row] if anomalous else ()
    slices: Sequence[Slice] = ()
    exemplars: Sequence[str] = ()
    if anomalous and isinstance(windows, ClosedWindows):
        slices = windows.slices(row)
        exemplars = explain.exemplars(windows.exemplars(row), contributions)
    return Observation(
        series=batch.series[row],
        model=info.model,
        endpoint=info.endpoint,
        window_start_ms=batch.window_start_ms,
        window_end_ms=batch.window_start_ms + batch.window_ms,
        score=float(scores.score[row]),
        tail_probability=float(scores.tail_probability[row]),
        is_anomalous=anomalous,
        reason=scores.reason[row],
        contributions=contributions,
        slices=slices,
        exemplars=exemplars,
    )
