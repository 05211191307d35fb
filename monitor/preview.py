"""`inferwatch train --preview`: what a model trained now would change, before anything is changed.

A challenger is trained exactly as `inferwatch train` does it, and not registered. Then the stored windows of
the period go through the champion and through the challenger, both from empty memory with a day before the
period to warm up. The champion is replayed too, because a stored alert may come from an earlier model, from
the metrics of a user, which are not stored in full, or from a longer memory: what the champion itself does
not give again says nothing about the challenger, and is listed apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.base import Scorer
from detectors.training import SeriesHistory
from detectors.types import WindowBatch
from monitor.clock import rfc3339
from monitor.config import Settings
from monitor.errors import InferwatchError
from monitor.jobs import challenger, unpacked
from monitor.models import load_scorer
from monitor.schedule import DAY_MS
from monitor.what_if import Episode, episodes
from storage.models import ModelRegistry, PastAlert
from storage.terminal import ScoredSeries

WARM_UP_MS = DAY_MS


@dataclass(frozen=True, slots=True)
class Changes:
    """What the challenger makes of the past; every list is ordered by time."""

    stays: list[PastAlert]
    goes: list[PastAlert]
    not_reproduced: list[PastAlert]  # nor does the champion give them, from these windows
    comes: list[Episode]
    lost_incidents: list[str]  # labelled true_positive, and every alert of it in the period goes


@dataclass(frozen=True, slots=True)
class Preview:
    since_ms: int
    until_ms: int
    champion: str
    challenger: str
    would_be_promoted: bool
    reason: str
    metrics: dict[str, Any]
    changes: Changes

    def as_json(self) -> dict[str, object]:
        changes = self.changes
        return {
            "since": rfc3339(self.since_ms),
            "until": rfc3339(self.until_ms),
            "champion": self.champion,
            "challenger": self.challenger,
            "would_be_promoted": self.would_be_promoted,
            "reason": self.reason,
            "stays": [_shown(alert) for alert in changes.stays],
            "goes": [_shown(alert) for alert in changes.goes],
            "comes": [episode.as_json() for episode in changes.comes],
            "lost_incidents": changes.lost_incidents,
            "not_reproduced": [_shown(alert) for alert in changes.not_reproduced],
            "metrics": self.metrics,
        }


def preview(settings: Settings, registry: ModelRegistry, since_ms: int) -> Preview:
    """Train, replay and compare; writes nothing. Raises InferwatchError where nothing is stored."""
    until_ms = registry.newest_window_end_ms()
    if until_ms is None:
        raise InferwatchError("no windows are stored yet; `inferwatch run` or `replay` makes some")
    champion = load_scorer(settings, registry.champion_artifact())
    trained = challenger(settings, registry, until_ms)
    stored = registry.training_set(
        since_ms=since_ms - WARM_UP_MS, until_ms=until_ms, max_windows=settings.training.max_windows
    )
    history = {name: unpacked(name, windows) for name, windows in stored.series.items()}
    calm, window_ms = settings.detection.resolve_after_windows, settings.window.length_s * 1000
    old, new = (
        replayed(scorer, history, window_ms=window_ms, from_ms=since_ms, resolve_after_windows=calm)
        for scorer in (champion, trained.ensemble)
    )
    past = registry.past_alerts(since_ms=since_ms, until_ms=until_ms)
    return Preview(
        since_ms=since_ms,
        until_ms=until_ms,
        champion=champion.version,
        challenger=trained.ensemble.version,
        would_be_promoted=trained.promoted,
        reason=trained.reason,
        metrics=trained.metrics,
        changes=compare(past, old, new),
    )


def compare(past: Sequence[PastAlert], champion: Sequence[Episode], challenger: Sequence[Episode]) -> Changes:
    """Past alerts beside what both models give for the same windows; alerts match where they overlap."""
    was = [(alert, Episode(alert.series, alert.start_ms, alert.end_ms, 0.0)) for alert in past]
    stays = [alert for alert, span in was if _any(span, challenger)]
    rest = [(alert, span) for alert, span in was if not _any(span, challenger)]
    goes = [alert for alert, span in rest if _any(span, champion)]
    known = [*(span for _, span in was), *champion]
    kept = {alert.incident_id for alert in past if alert not in goes}
    lost = {a.incident_id: None for a in goes if a.label == "true_positive" and a.incident_id not in kept}
    return Changes(
        stays=stays,
        goes=goes,
        not_reproduced=[alert for alert, span in rest if not _any(span, champion)],
        comes=[episode for episode in challenger if not _any(episode, known)],
        lost_incidents=[incident_id for incident_id in lost if incident_id is not None],
    )


def replayed(
    scorer: Scorer,
    history: Mapping[str, SeriesHistory],
    *,
    window_ms: int,
    from_ms: int,
    resolve_after_windows: int,
) -> list[Episode]:
    """The alerts that a scorer gives for stored windows from `from_ms` on; the ones before warm it up."""
    names = sorted(history)
    if not names:
        return []
    column = np.concatenate([np.full(len(history[n].window_start_ms), j) for j, n in enumerate(names)])
    starts = np.concatenate([history[n].window_start_ms for n in names])
    values = np.concatenate([history[n].values for n in names])
    counts = np.concatenate([history[n].counts for n in names])
    order = np.lexsort((column, starts))
    found: dict[int, tuple[list[int], list[float], list[bool]]] = {}
    states = scorer.new_states()
    cuts = np.flatnonzero(np.diff(starts[order])) + 1
    for rows in np.split(order, cuts):
        start_ms = int(starts[rows[0]])
        series = [names[j] for j in column[rows].tolist()]
        scores = scorer.score(WindowBatch(start_ms, window_ms, series, values[rows], counts[rows]), states)
        if start_ms < from_ms:
            continue
        for j, score, alarm in zip(
            column[rows].tolist(), scores.score.tolist(), scores.is_anomalous.tolist(), strict=True
        ):
            times, heights, alarms = found.setdefault(j, ([], [], []))
            times.append(start_ms)
            heights.append(score)
            alarms.append(alarm)
    all_: list[Episode] = []
    for j, (times, heights, alarms) in found.items():
        scored = ScoredSeries(names[j], 0, times, window_ms, heights, alarms)
        all_ += episodes(scored, alarms, resolve_after_windows)
    return sorted(all_, key=lambda episode: (episode.start_ms, episode.series))


def _any(span: Episode, among: Sequence[Episode]) -> bool:
    return any(span.overlaps(other) for other in among)


def _shown(alert: PastAlert) -> dict[str, object]:
    return {
        "alert_id": alert.alert_id,
        "incident_id": alert.incident_id,
        "series": alert.series,
        "start": rfc3339(alert.start_ms),
        "end": rfc3339(alert.end_ms),
        "severity": alert.severity,
        "label": alert.label,
        "summary": alert.summary,
    }
