"""A model version that a series has not had before is compared with the one it replaces.

From its first window on a new version is on trial for a day. At fixed event times behind that window
(LOOKS_MS) it is compared, by the windows that hold both versions where most of its records lie in such ones,
else by the windows behind the change against those in front of it; see `detectors.versions`. The verdict is
part of the commit that closed the window, so a replay gives the same verdicts. It fires no alert: it goes
into the deployment, and into the sentence of an alert of the series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from detectors.pack import unpack
from detectors.paired import Paired
from detectors.placebo import before_after
from detectors.versions import LATENCY_GIVEN_TOKENS, LOOKS, METRICS, Difference, findings
from monitor.alerting import AlertState
from monitor.clock import rfc3339
from monitor.explain import BLAME, duration, feature_words, quantity
from monitor.recall import readable
from monitor.steps import AmendedWindow, ClosedWindows
from storage.types import AlertTransition, ComparisonRow, StoredWindow

FORMAT = 1
LOOKS_MS = (600_000, 1_800_000, 7_200_000, 86_400_000)
"""How long behind the first window of a version it is compared."""
assert len(LOOKS_MS) == LOOKS
DAY_MS = 86_400_000
WHOLE = 0.9
"""Share of the records of a window from which on it counts as one of the new version alone."""
MIN_WHOLE_MS = LOOKS_MS[0]
MAX_WHOLE_MS = LOOKS_MS[2]
MAX_COMPARED = 40
"""Comparisons at one close; further ones wait for the next, so that no deployment holds up the log."""
FRESH_MS = 3_600_000
"""So long an alert of the series mentions a new version of which nothing is known yet."""
MAX_TOLD = 3

Loader = Callable[[str, int, int], list[StoredWindow]]
"""(series, since_ms, until_ms) -> its windows that start in there, ascending, drafted ones included."""


class Rollout(msgspec.Struct):
    """One new version of one series on trial."""

    version: str
    previous: str
    at_ms: int  # start of its first window
    requests: int = 0  # of the new version
    beside: int = 0  # of them, in windows that hold the previous version too
    previous_requests: int = 0  # of the previous version, in the same windows
    whole_from_ms: int = -1  # stretch of windows that are nearly all of the new version; -1 = none yet
    whole_until_ms: int = -1
    settled: bool = False  # that stretch has ended for good
    looks: int = 0  # done
    verdict: str = ""  # "" = none yet
    told: str = ""  # what differs, for an alert


_decoder = msgspec.msgpack.Decoder(tuple[int, Rollout, list[bytes] | None])


@dataclass(slots=True, eq=False)
class Rollouts:
    """All trials of one partition, at most one per series: a newer version ends the one before."""

    load: Loader
    of: dict[str, Rollout] = field(default_factory=dict)
    paired: dict[str, Paired] = field(default_factory=dict)

    def step(self, closed: ClosedWindows) -> list[ComparisonRow]:
        """All windows of one start: begin trials, go on with them, compare those whose time has come."""
        names, start_ms = closed.batch.series, closed.batch.window_start_ms
        end_ms = start_ms + closed.batch.window_ms
        for row, version, previous in closed.deployed:
            self._begin(names[row], version, previous, start_ms, closed.versions.get(row, {}))
        due: list[tuple[int, str]] = []
        for name, trial in list(self.of.items()):
            row = bisect_left(names, name)
            if row == len(names) or names[row] != name:
                continue
            if row in closed.versions:
                self._observe(name, trial, closed, row)
            if end_ms - trial.at_ms >= LOOKS_MS[trial.looks]:
                due.append((trial.at_ms, name))
        compared = [self._look(name, end_ms) for _, name in sorted(due)[:MAX_COMPARED]]
        return [row for row in compared if row is not None]

    def amended(self, step: AmendedWindow) -> None:
        """Late records may be the first of a version."""
        for version in step.deployed:
            self._begin(step.info.series, version, step.previous, step.batch.window_start_ms, {})

    def drop(self, series: str) -> None:
        self.of.pop(series, None)
        self.paired.pop(series, None)

    def note(self, series: str, at_ms: int) -> str:
        """What an alert of the series should know about its newest version; "" without one."""
        trial = self.of.get(series)
        if trial is None:
            return ""
        if trial.verdict == "worse":
            return f"version {trial.version} against {trial.previous}: {trial.told}"
        if not trial.verdict and at_ms - trial.at_ms <= FRESH_MS:
            return f"version {trial.version} is new since {rfc3339(trial.at_ms)[11:16]} UTC"
        return ""

    def dump(self, series: str) -> bytes | None:
        """The trial of a series as bytes; None without one."""
        trial = self.of.get(series)
        if trial is None:
            return None
        paired = self.paired.get(series)
        return msgspec.msgpack.encode((FORMAT, trial, None if paired is None else paired.to_arrays()))

    def restore(self, series: str, state: bytes) -> None:
        """Raises ValueError for bytes that this version of the format did not write."""
        try:
            version, trial, paired = _decoder.decode(state)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"not the trial of a version: {error}") from None
        if version != FORMAT:
            raise ValueError(f"trial of format {version}, this version reads {FORMAT}")
        self.of[series] = trial
        if paired is not None:
            self.paired[series] = Paired.from_arrays(paired)

    def _begin(
        self, series: str, version: str, previous: str, at_ms: int, records: Mapping[str, int]
    ) -> None:
        held = self.of.get(series)
        if not previous or version == previous:
            return
        if (
            held is not None
            and held.at_ms >= at_ms
            and records.get(held.version, 0) >= records.get(version, 0)
        ):
            return  # two are new in one window: the one with more records is compared
        self.drop(series)
        self.of[series] = Rollout(version, previous, at_ms)

    def _observe(self, name: str, trial: Rollout, closed: ClosedWindows, row: int) -> None:
        records, start_ms = closed.versions[row], closed.batch.window_start_ms
        new, old = records.get(trial.version, 0), records.get(trial.previous, 0)
        trial.requests += new
        if new and old:
            trial.beside += new
            trial.previous_requests += old
            found = closed.by_version(row)
            if trial.version in found and trial.previous in found:
                paired = self.paired.setdefault(name, Paired())
                paired.add(found[trial.previous], found[trial.version])
        if trial.settled:
            return
        if new >= WHOLE * sum(records.values()):
            if trial.whole_from_ms < 0:
                trial.whole_from_ms = start_ms
            trial.whole_until_ms = start_ms + closed.batch.window_ms
            trial.settled = trial.whole_until_ms - trial.whole_from_ms >= MAX_WHOLE_MS
        elif trial.whole_from_ms >= 0:
            trial.settled = trial.whole_until_ms - trial.whole_from_ms >= MIN_WHOLE_MS
            if not trial.settled:
                trial.whole_from_ms = trial.whole_until_ms = -1

    def _look(self, series: str, at_ms: int) -> ComparisonRow | None:
        """Compare now; None where a later look has nothing new to say."""
        trial = self.of[series]
        trial.looks += 1
        paired = self.paired.get(series)
        found, basis = findings(paired.differences() if paired else []), "same_windows"
        if not found or 2 * trial.beside < trial.requests:
            if trial.looks == LOOKS and trial.verdict:
                self.drop(series)
                return None
            other = self._before_after(series, trial)
            if other or not found:
                found, basis = other, "before_and_after"
        said = {d.says for d in found}
        verdict = next((v for v in ("worse", "different", "better", "alike") if v in said), "unclear")
        trial.verdict, trial.told = verdict, differing(found)
        row = ComparisonRow(
            series=series,
            model_version=trial.version,
            at_ms=trial.at_ms,
            previous_version=trial.previous,
            compared_at_ms=at_ms,
            verdict=verdict,
            basis=basis,
            requests=trial.requests,
            summary=summary(trial, found, at_ms - trial.at_ms),
            differences=[_shown(d) for d in found],
        )
        if trial.looks == LOOKS:
            self.drop(series)
        return row

    def _before_after(self, series: str, trial: Rollout) -> list[Difference]:
        if trial.whole_from_ms < 0:
            return []
        length_ms = trial.whole_until_ms - trial.whole_from_ms
        reach_ms = DAY_MS if length_ms <= LOOKS_MS[1] else 2 * DAY_MS
        stored = self.load(series, trial.at_ms - reach_ms, trial.whole_until_ms)
        stored = [stored[i] for i in readable(series, [window.statistics for window in stored])]
        if not stored:
            return []
        values, counts = unpack([window.statistics or b"" for window in stored])
        return findings(
            before_after(
                np.array([window.start_ms for window in stored], np.int64),
                values,
                counts,
                np.array([not window.is_anomalous for window in stored]),
                old_until_ms=trial.at_ms,
                new_from_ms=trial.whole_from_ms,
                new_until_ms=trial.whole_until_ms,
            )
        )


def blame(states: dict[str, AlertState], worse: Mapping[str, str], at_ms: int) -> list[AlertTransition]:
    """New model versions were found worse (series -> the sentence): alerts that fire say so from now on."""
    transitions = []
    for series in sorted(worse):
        state = states.get(series)
        if state is None or state.status != "firing":
            continue
        told = state.alert.summary.split(BLAME)[0] + BLAME + worse[series]
        alert = replace(state.alert, summary=told)
        states[series] = replace(state, alert=alert)
        transitions.append(AlertTransition(max(at_ms, state.seen_until_ms), "compared", alert))
    return transitions


def differing(found: list[Difference]) -> str:
    """ "p95 latency +38%, error rate 0.2% to 1.4%", the bad ones first; "" where nothing differs."""
    order = {"worse": 0, "different": 1, "better": 2}
    told = sorted((d for d in found if d.says in order), key=lambda d: order[d.says])
    more = f" and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
    return ", ".join(_phrase(d) for d in told[:MAX_TOLD]) + more


def summary(trial: Rollout, found: list[Difference], after_ms: int) -> str:
    """ "v8 against v7 after 30 min, 1,240 requests: p95 latency +38%; rest alike"."""
    many = f"{trial.requests:,} request{'' if trial.requests == 1 else 's'}"
    start = f"{trial.version} against {trial.previous} after {duration(after_ms)}, {many}: "
    if not found:
        return start + "too little to compare"
    told = differing(found)
    if not told:
        return start + "no difference found"
    return start + told + ("; rest alike" if any(d.says == "alike" for d in found) else "")


def _phrase(d: Difference) -> str:
    kind = next(metric.kind for metric in METRICS if metric.name == d.metric)
    name = "latency given tokens" if d.metric == LATENCY_GIVEN_TOKENS else feature_words(d.metric)
    if kind == "log":
        return f"{name} {d.change:+.0%}" if abs(d.change) < 9.995 else f"{name} {1 + d.change:.0f} times"
    return f"{name} {quantity(d.metric, d.old)} to {quantity(d.metric, d.new)}"


def _shown(d: Difference) -> dict[str, Any]:
    """As JSON."""
    numbers = {"old": d.old, "new": d.new, "change": d.change, "p": d.p}
    return {
        "metric": d.metric,
        **{name: float(f"{value:.6g}") for name, value in numbers.items()},
        "requests": d.records,
        "says": d.says,
    }
