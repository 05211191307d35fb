"""Hours of the week as people write them: "mon-fri 08:00-18:00", "22:00-07:00", "sat,sun"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FORMS = 'write "22:00-07:00", "mon-fri 08:00-18:00" or "sat,sun"'
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|(24:00)", re.ASCII)


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """Minutes [start, end) of some days of the week; an end before its start lies on the next day."""

    days: frozenset[int]  # 0 = Monday
    start_min: int  # 0 to 1439
    end_min: int  # 0 to 1440; equal to the start: a whole day from there on

    def covers(self, local: datetime) -> bool:
        """Whether a local time lies inside."""
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start_min < self.end_min:
            return day in self.days and self.start_min <= minute < self.end_min
        began_today = day in self.days and minute >= self.start_min
        return began_today or ((day - 1) % 7 in self.days and minute < self.end_min)


def parse_span(text: str) -> TimeSpan:
    """Raises ValueError with the accepted forms."""
    words = text.strip().lower().split()
    clock = words.pop() if words and ":" in words[-1] else "00:00-24:00"
    if len(words) > 1 or (not words and ":" not in text):
        raise ValueError(f"{text!r} is no span of time: {FORMS}")
    days = _days(words[0], text) if words else frozenset(range(7))
    start, dash, end = clock.partition("-")
    if not dash or not _CLOCK.fullmatch(start) or not _CLOCK.fullmatch(end) or start == "24:00":
        raise ValueError(f"{text!r} is no span of time: {FORMS}")
    return TimeSpan(days, minutes(start), minutes(end))


def minutes(clock: str) -> int:
    """`09:30` -> 570. Raises ValueError for anything else."""
    found = _CLOCK.fullmatch(clock)
    if found is None:
        raise ValueError(f"{clock!r} is no time of day: write 09:00")
    return 1_440 if found[3] else int(found[1]) * 60 + int(found[2])


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if first not in DAYS or last not in DAYS:
            raise ValueError(f"{whole!r} is no span of time: days are {', '.join(DAYS)}; {FORMS}")
        length = (DAYS.index(last) - DAYS.index(first)) % 7
        found |= {(DAYS.index(first) + n) % 7 for n in range(length + 1)}
    return frozenset(found)


def local_time(at_ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)


def inside(spans: Iterable[TimeSpan], at_ms: int, zone: ZoneInfo) -> bool:
    """Whether any of the spans covers the moment, by the clocks of `zone`."""
    local = local_time(at_ms, zone)
    return any(span.covers(local) for span in spans)


def last_boundary_ms(at_ms: int, *, daily: bool, at_min: int, zone: ZoneInfo) -> int:
    """The newest full hour, or the newest `at_min` (minutes behind local midnight), not after `at_ms`."""
    if not daily:
        return at_ms // 3_600_000 * 3_600_000
    local = local_time(at_ms, zone)
    for days_back in (0, 1, 2):
        midnight = (local - timedelta(days=days_back)).replace(hour=0, minute=0, second=0, microsecond=0)
        wall = midnight.replace(hour=at_min // 60 % 24, minute=at_min % 60, fold=0)
        boundary_ms = int(wall.timestamp()) * 1000
        if boundary_ms <= at_ms:
            return boundary_ms
    raise AssertionError("a day has no more than 26 hours")
