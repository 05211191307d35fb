"""Context of the page that asks what another false-alarm budget would have found."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from monitor import what_if
from monitor.config import DetectionSettings
from monitor.errors import InferwatchError
from storage import terminal

REACHES = ("1d", "7d", "30d")
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
        "ranges": REACHES,
        "text": series,
        "judged": [],
        "problem": "",
    }
    if other is None or terminal.newest_window(engine) is None:
        return context
    try:
        found = what_if.ask(engine, detection, [other], since=reach, series=series or None, now_ms=0)
    except InferwatchError as error:
        return context | {"problem": str(error)}
    now, then = found.judged[0], found.judged[-1]
    return context | {
        "judged": [now, then],
        "more": then.beside(now)[:SHOWN_EPISODES],
        "gone": now.beside(then)[:SHOWN_EPISODES],
        "counts": [len(then.beside(now)), len(now.beside(then))],
        "version": found.version,
    }
