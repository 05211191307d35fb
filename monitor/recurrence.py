"""Windows that come back: "Tuesdays and Thursdays from 22:00 for four hours, Berlin time". Pure.

As data: {"days": ["tue", "thu"], "start": "22:00", "duration": "4h", "time_zone": "Europe/Berlin"}; no days
means every day. A window is named by the local day it starts on and goes on past midnight; its length is
elapsed time, so that it stays the same in the night in which clocks change. A start that the clock skips
counts as if it had not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from monitor.output import parse_duration_ms

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MS = 86_400_000
MAX_DURATION_MS = 7 * DAY_MS
_START = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Recurrence:
    days: frozenset[int]  # 0 = Monday
    start: time
    duration_ms: int
    zone: ZoneInfo

    def to_dict(self) -> dict[str, Any]:
        """The form that `parse` reads; the duration in seconds."""
        return {
            "days": [DAYS[day] for day in sorted(self.days)],
            "start": self.start.strftime("%H:%M"),
            "duration": f"{self.duration_ms // 1000}s",
            "time_zone": self.zone.key,
        }


def parse(data: Mapping[str, Any]) -> Recurrence:
    """From its form as data. Raises ValueError that says what is wrong."""
    unknown = set(data) - {"days", "start", "duration", "time_zone"}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is unknown; use days, start, duration and time_zone")
    names = data.get("days") or []
    if not isinstance(names, list | tuple) or not all(name in DAYS for name in names):
        raise ValueError(f"days are of {', '.join(DAYS)}")
    start = _START.fullmatch(str(data.get("start", "")))
    if start is None:
        raise ValueError("start is a local time such as 22:00")
    duration_ms = parse_duration_ms(str(data.get("duration", "")))
    if not 1_000 <= duration_ms <= MAX_DURATION_MS:
        raise ValueError("duration lies between 1s and 7d")
    name = str(data.get("time_zone") or "UTC")
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone; use a name such as Europe/Berlin or UTC") from None
    days = frozenset(DAYS.index(str(each)) for each in names) or frozenset(range(7))
    return Recurrence(days, time(int(start[1]), int(start[2])), duration_ms, zone)


def covers(recurrence: Recurrence, at_ms: int) -> bool:
    """True when a window of it holds the moment `at_ms` (ms since the epoch)."""
    local = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(recurrence.zone).date()
    return any(
        0 <= at_ms - start_ms < recurrence.duration_ms
        for back in range(recurrence.duration_ms // DAY_MS + 2)
        for start_ms in [_start_ms(recurrence, local - timedelta(days=back))]
        if start_ms is not None
    )


def next_start_ms(recurrence: Recurrence, after_ms: int) -> int:
    """The first start of a window at or behind `after_ms`."""
    local = datetime.fromtimestamp(after_ms / 1000, UTC).astimezone(recurrence.zone).date()
    starts = (_start_ms(recurrence, local + timedelta(days=ahead)) for ahead in range(-1, 9))
    return min(start for start in starts if start is not None and start >= after_ms)


def _start_ms(recurrence: Recurrence, day: date) -> int | None:
    if day.weekday() not in recurrence.days:
        return None
    return round(datetime.combine(day, recurrence.start, recurrence.zone).timestamp() * 1000)
