"""What would have fired with another false-alarm budget: from the scores that are stored, without a detector.

A stored score is the height of a window above its series' usual level, squashed; the height is what the
budget's threshold is compared with (detectors/bar.py). So the decision of every stored window can be
made again. One thing cannot be seen: a window that is beyond doubt (a service that fails or falls silent at
once) is lifted above whatever threshold is in force, so under a smaller budget it may be missing here.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from detectors import bar
from monitor.clock import rfc3339
from monitor.config import DetectionSettings
from monitor.errors import InferwatchError
from monitor.output import parse_time
from storage import terminal
from storage.models import ModelRegistry
from storage.terminal import ScoredSeries

_HEAD = struct.Struct("<4sI32s")


@dataclass(frozen=True, slots=True)
class Levels:
    """How often clean series score above each level, as a model learned it in training."""

    version: str
    heights: tuple[float, ...]
    events_per_week: tuple[float, ...]  # at 60 s windows

    def threshold(self, budget_per_week: float, window_ms: int) -> float:
        """The height that clean series exceed `budget_per_week` times a week, in clusters."""
        return bar.height_for(
            self.heights, self.events_per_week, false_alarms_per_week=budget_per_week, window_ms=window_ms
        )


@dataclass(frozen=True, slots=True)
class Episode:
    """Windows that would have been one alert."""

    series: str
    start_ms: int
    end_ms: int  # end of its newest anomalous window
    peak_score: float

    def as_json(self) -> dict[str, object]:
        times = {"start": rfc3339(self.start_ms), "end": rfc3339(self.end_ms)}
        return {"series": self.series, **times, "peak_score": round(self.peak_score, 6)}

    def overlaps(self, other: Episode) -> bool:
        same = self.series == other.series
        return same and self.start_ms < other.end_ms and other.start_ms < self.end_ms


@dataclass(frozen=True, slots=True)
class Judged:
    """What one budget makes of the stored windows."""

    budget: float
    threshold: float
    windows: int  # anomalous ones
    episodes: list[Episode]

    def beside(self, other: Judged) -> list[Episode]:
        """Episodes that the other budget does not have, not even in part."""
        return [mine for mine in self.episodes if not any(mine.overlaps(theirs) for theirs in other.episodes)]

    def as_json(self) -> dict[str, object]:
        return {
            "budget": self.budget,
            "alerts": len(self.episodes),
            "windows": self.windows,
            "threshold_score": round(score_of(self.threshold), 6),
            "episodes": [episode.as_json() for episode in self.episodes],
        }


@dataclass(frozen=True, slots=True)
class Found:
    """What the budget in force makes of the stored windows, first, and what others would."""

    version: str  # of the model whose calibration judged
    judged: list[Judged]

    def as_json(self) -> dict[str, object]:
        return {"model_version": self.version, "budgets": [one.as_json() for one in self.judged]}


def ask(
    engine: Engine,
    detection: DetectionSettings,
    budgets: Sequence[float],
    *,
    since: str,
    series: str | None,
    now_ms: int,
) -> Found:
    """What `budgets` would have found since then, with the calibration of the model in force.

    `since` is a time, or a length that counts back from the newest window, so that a log of last year can be
    asked too. Raises ValueError for a `since` that is neither, InferwatchError for a model that cannot be
    read.
    """
    newest = terminal.newest_window(engine) or (now_ms - 60_000, now_ms)
    since_ms = parse_time(since, newest[1])
    levels = levels_of(ModelRegistry(engine).champion_artifact())
    judged = judge(
        engine,
        levels,
        [detection.false_alarms_per_week, *budgets],
        window_ms=newest[1] - newest[0],
        since_ms=since_ms,
        series=series,
        resolve_after_windows=detection.resolve_after_windows,
    )
    return Found(levels.version, judged)


def judge(
    engine: Engine,
    levels: Levels,
    budgets: Sequence[float],
    *,
    window_ms: int,
    since_ms: int,
    series: str | None,
    resolve_after_windows: int,
) -> list[Judged]:
    """One answer per budget, in their order; equal budgets once each."""
    wanted = {budget: levels.threshold(budget, window_ms) for budget in budgets}
    found: dict[float, tuple[int, list[Episode]]] = {budget: (0, []) for budget in wanted}
    least = score_of(min(wanted.values()))
    for windows in terminal.scored_series(
        engine, since_ms=since_ms, until_ms=None, series=series, min_score=least
    ):
        for budget, threshold in wanted.items():
            flags = alarms(windows.scores, windows.windows_before, threshold)
            count, known = found[budget]
            found[budget] = (
                count + sum(flags),
                known + episodes(windows, flags, resolve_after_windows),
            )
    return [
        Judged(budget, wanted[budget], count, sorted(all_, key=lambda e: (e.start_ms, e.series)))
        for budget, (count, all_) in found.items()
    ]


def levels_of(artifact: bytes | None) -> Levels:
    """The levels of a stored model, or of the one that ships with the package.

    Raises InferwatchError for bytes that are no model or were changed.
    """
    if artifact is None:
        prior = importlib.resources.files("detectors") / "prior" / "prior.iwm"
        artifact = prior.read_bytes()
    try:
        magic, length, digest = _HEAD.unpack_from(artifact)
        text = artifact[_HEAD.size : _HEAD.size + length]
        if magic != b"IWM1" or hashlib.sha256(text).digest() != digest:
            raise ValueError("the manifest was changed")
        manifest = json.loads(text)
        at = _HEAD.size + length
        for name, size, expected in manifest["parts"]:
            part, at = artifact[at : at + size], at + size
            if name == "calibration.json" and hashlib.sha256(part).hexdigest() == expected:
                raw = json.loads(part)
                events = tuple(map(float, raw["events_per_week"]))
                return Levels(manifest["version"], tuple(map(float, raw["levels"])), events)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise InferwatchError(f"the model in force cannot be read: {error}") from None
    raise InferwatchError("the model in force holds no calibration")


def height_of(score: float) -> float:
    """The height that a stored score in [0, 1] was squashed from."""
    bounded = min(max(score, 1e-17), 1.0 - 1e-16)
    return 2.0 * math.log(bounded / (1.0 - bounded))


def score_of(height: float) -> float:
    """The score that is stored for a height."""
    return 1.0 / (1.0 + math.exp(-min(max(height / 2.0, -40.0), 40.0)))


def alarms(scores: Sequence[float], windows_before: int, threshold: float) -> list[bool]:
    """The decision of each window, in order; `windows_before`: how many the series had had by then."""
    found, hold = [], 0
    for number, score in enumerate(scores, start=windows_before + 1):
        height = height_of(score)
        needed = threshold + (bar.LEARNING_EXTRA if number <= bar.LEARNING_WINDOWS else 0.0)
        alarm = height > needed or (hold > 0 and height > needed - bar.HOLD_BELOW)
        hold = bar.HOLD_WINDOWS if alarm else max(hold - 1, 0)
        found.append(alarm)
    return found


def episodes(windows: ScoredSeries, flags: Sequence[bool], resolve_after_windows: int) -> list[Episode]:
    """Anomalous windows joined as alerts join them: calm for `resolve_after_windows` ends one."""
    found: list[Episode] = []
    calm = resolve_after_windows
    for start_ms, score, flag in zip(windows.starts_ms, windows.scores, flags, strict=True):
        if not flag:
            calm += 1
            continue
        end_ms = start_ms + windows.window_ms
        if calm >= resolve_after_windows or not found:
            found.append(Episode(windows.series, start_ms, end_ms, score))
        else:
            last = found[-1]
            found[-1] = Episode(last.series, last.start_ms, end_ms, max(last.peak_score, score))
        calm = 0
    return found
