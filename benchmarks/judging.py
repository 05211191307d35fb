"""Scores and alarms against the truth: what is an event, what is found, what is a false alarm.

Alarm windows less than `MERGE_MS` apart are one event. An event is false if it lies outside every
true interval, stretched by `BEFORE_MS` and `AFTER_MS`; so is one on a benign change. A fault is found
if a window is an alarm that ends after the first changed record and begins before the fault's end plus
`LATE_MS`; the delay runs from that first record to the end of that window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.fold import Bool, Float64, Int64
from benchmarks.suites import WINDOW_MS, Suite
from monitor.truth import TruthInterval

MERGE_MS = 15 * 60_000
BEFORE_MS = 2 * 60_000
AFTER_MS = 30 * 60_000
LATE_MS = 5 * 60_000
WEEK_MS = 7 * 24 * 3_600_000


@dataclass(slots=True)
class Verdict:
    """What a detector said of a suite. `top` names its first three features per alarm (m, w)."""

    score: Float64  # [m, w]
    alarm: Bool  # [m, w]
    top: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Found:
    """One visible fault and what became of it."""

    truth: TruthInterval
    found: bool
    delay_min: float  # NaN if not found
    named: bool | None  # a right feature among the first three of the first alarm; None without names


@dataclass(slots=True)
class Result:
    """Figures of one detector on one suite."""

    events: list[Found]
    false_events: int
    benign: int
    benign_alarmed: int
    series_weeks: float
    average_precision: float
    named_alerts: int  # alert = first window of an alarm event that lies on a fault
    judged_alerts: int

    @property
    def recall(self) -> float:
        return float(np.mean([event.found for event in self.events])) if self.events else float("nan")

    @property
    def false_per_series_week(self) -> float:
        return self.false_events / self.series_weeks if self.series_weeks else float("nan")

    def delay_min(self, *, gradual: bool) -> float:
        delays = [e.delay_min for e in self.events if e.found and e.truth.gradual == gradual]
        return float(np.median(delays)) if delays else float("nan")

    @property
    def named_share(self) -> float:
        return self.named_alerts / self.judged_alerts if self.judged_alerts else float("nan")

    def recall_of(self, kinds: Sequence[str]) -> float:
        hits = [event.found for event in self.events if event.truth.kind in kinds]
        return float(np.mean(hits)) if hits else float("nan")


def alarm_events(start_ms: Int64, alarm: Bool) -> list[tuple[int, int]]:
    """(first, last) alarm window of every merged event."""
    at = np.flatnonzero(alarm)
    if not at.size:
        return []
    cut = np.flatnonzero(np.diff(start_ms[at]) >= MERGE_MS)
    firsts = np.concatenate([[0], cut + 1])
    lasts = np.concatenate([cut, [at.size - 1]])
    return [(int(at[a]), int(at[b])) for a, b in zip(firsts, lasts, strict=True)]


def judge(suite: Suite, verdict: Verdict, *, from_ms: int) -> Result:
    """Judge the windows from `from_ms` on."""
    result = Result([], 0, 0, 0, 0.0, float("nan"), 0, 0)
    usable = suite.start_ms >= from_ms
    positive = np.zeros(verdict.score.shape, bool)
    counted = np.broadcast_to(usable, verdict.score.shape).copy()
    for row, series in enumerate(suite.series):
        truth = suite.of(series)
        alarm = verdict.alarm[row] & usable
        faults = [item for item in truth if item.visible and not item.benign]
        for item in faults:
            result.events.append(_find(suite.start_ms, alarm, item, row, verdict))
            overlap = _overlap(suite.start_ms, item.visible_from_ms, item.end_ms)
            counted[row, _overlap(suite.start_ms, item.start_ms - BEFORE_MS, item.end_ms + AFTER_MS)] = False
            positive[row, overlap] = True
        invisible = [item for item in truth if not item.visible and not item.benign]
        _count_events(suite.start_ms, alarm, faults, invisible, row, verdict, result)
        for item in (item for item in truth if item.benign):
            result.benign += 1
            result.benign_alarmed += bool(alarm[_overlap(suite.start_ms, item.start_ms, item.end_ms)].any())
    outside = counted.sum()
    result.series_weeks = float(outside) * WINDOW_MS / WEEK_MS
    judged = (counted | positive) & usable
    result.average_precision = average_precision(verdict.score[judged], positive[judged])
    return result


def _overlap(start_ms: Int64, from_ms: int, to_ms: int) -> Bool:
    return (start_ms + WINDOW_MS > from_ms) & (start_ms < to_ms)


def _find(start_ms: Int64, alarm: Bool, item: TruthInterval, row: int, verdict: Verdict) -> Found:
    hits = np.flatnonzero(alarm & _overlap(start_ms, item.visible_from_ms, item.end_ms + LATE_MS))
    if not hits.size:
        return Found(item, False, float("nan"), None)
    first = int(hits[0])
    named = None
    if verdict.top:
        named = bool(set(verdict.top.get((row, first), ())) & set(item.guilty))
    return Found(item, True, (int(start_ms[first]) + WINDOW_MS - item.visible_from_ms) / 60_000, named)


def _count_events(
    start_ms: Int64,
    alarm: Bool,
    faults: Sequence[TruthInterval],
    invisible: Sequence[TruthInterval],
    row: int,
    verdict: Verdict,
    result: Result,
) -> None:
    """False events, and how often the alarms on faults name a right feature."""
    for first, last in alarm_events(start_ms, alarm):
        begin, end = int(start_ms[first]), int(start_ms[last]) + WINDOW_MS
        touching = [f for f in faults if begin < f.end_ms + AFTER_MS and end > f.start_ms - BEFORE_MS]
        excused = [f for f in invisible if begin < f.end_ms + AFTER_MS and end > f.start_ms - BEFORE_MS]
        if not touching:
            result.false_events += not excused
            continue
        if verdict.top:
            guilty = {name for item in touching for name in item.guilty}
            result.judged_alerts += 1
            result.named_alerts += bool(set(verdict.top.get((row, first), ())) & guilty)


def average_precision(score: Float64, positive: Bool) -> float:
    """Area under precision over recall, ties taken together."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.concatenate([np.diff(score[order]) != 0, [True]])
    precision = (hits / np.arange(1, len(hits) + 1))[last]
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def threshold_for(suite: Suite, score: Float64, budget: float, *, from_ms: int) -> float:
    """The lowest threshold at which this suite has at most `budget` false events per series-week.

    Chosen with the truth in hand, so that detectors without a calibration can be compared at all.
    """
    usable = suite.start_ms >= from_ms
    levels = np.unique(np.quantile(score[:, usable], 1 - np.geomspace(1e-6, 0.2, 60)))
    best = np.inf
    for level in levels[::-1]:
        result = judge(suite, Verdict(score, score >= level), from_ms=from_ms)
        if result.false_per_series_week > budget:
            break
        best = float(level)
    return best
