"""Context of the page that asks what another false-alarm budget would have found."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from monitor import what_if
from monitor.config import DetectionSettings
from monitor.errors import InferwatchError
from storage import terminal
from storage.models import ModelRegistry

DAYS = {"1d": 1, "7d": 7, "30d": 30}
DAY_MS = 86_400_000
SHOWN_EPISODES = 50


def budget(
    engine: Engine, detection: DetectionSettings, *, other: float | None, reach: str, series: str
) -> dict[str, Any]:
    """What `other` false alarms per series and week would have found in the newest windows, and no more.

    Judged from stored scores, as `inferwatch evaluate what-if` does; `problem` says why there is no answer.
    """
    context: dict[str, Any] = {
        "configured": detection.false_alarms_per_week,
        "other": other,
        "reach": reach,
        "ranges": list(DAYS),
        "text": series,
        "judged": [],
        "problem": "",
    }
    newest = terminal.newest_window(engine)
    if other is None or newest is None:
        return context
    try:
        levels = what_if.levels_of(ModelRegistry(engine).champion_artifact())
    except InferwatchError as error:
        return context | {"problem": str(error)}
    judged = what_if.judge(
        engine,
        levels,
        [detection.false_alarms_per_week, other],
        since_ms=newest[1] - DAYS[reach] * DAY_MS,
        series=series or None,
        resolve_after_windows=detection.resolve_after_windows,
    )
    now, then = judged[0], judged[-1]
    return context | {
        "judged": [now, then],
        "more": then.beside(now)[:SHOWN_EPISODES],
        "gone": now.beside(then)[:SHOWN_EPISODES],
        "counts": [len(then.beside(now)), len(now.beside(then))],
        "version": levels.version,
    }
