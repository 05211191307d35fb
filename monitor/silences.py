"""What keeps notifications quiet, as people say it: its span, its windows, whether it holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from monitor import recurrence
from monitor.output import age, parse_duration_ms, parse_time

NEVER_ENDS_MS = 253_402_300_799_000  # 9999-12-31T23:59:59Z


@dataclass(frozen=True, slots=True)
class Wanted:
    """When a silence is to hold: in [starts_at_ms, ends_at_ms), event time, or only in its windows there."""

    starts_at_ms: int
    ends_at_ms: int
    recurrence: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a silence does at a moment."""

    state: Literal["holds", "waits", "over"]
    next_ms: int | None = None  # of one that waits: when it holds next


def wanted(
    now_ms: int,
    *,
    starts_at: str | None = None,
    ends_at: str | None = None,
    length: str | None = None,
    again: Mapping[str, Any] | None = None,
) -> Wanted:
    """From what a person gives: an end or a length, or windows that come back, for good without an end.

    Raises ValueError that says what is wrong.
    """
    rule = None
    if again is not None:
        try:
            rule = recurrence.parse(again).to_dict()
        except ValueError as error:
            raise ValueError(f"recurrence: {error}") from None
    starts_at_ms = now_ms if starts_at is None else parse_time(starts_at, now_ms)
    if ends_at is not None and length is not None:
        raise ValueError("give ends_at or for, not both")
    if ends_at is not None:
        ends_at_ms = parse_time(ends_at, now_ms)
    elif length is not None:
        ends_at_ms = starts_at_ms + parse_duration_ms(length)
        if ends_at_ms == starts_at_ms:
            raise ValueError("a silence must be longer than nothing")
    elif rule is not None:
        ends_at_ms = NEVER_ENDS_MS
    else:
        raise ValueError("give ends_at, for, or a recurrence")
    if not 0 <= starts_at_ms < ends_at_ms <= NEVER_ENDS_MS:
        raise ValueError("a silence ends behind its start, between 1970 and 9999")
    return Wanted(starts_at_ms, ends_at_ms, rule)


def standing(silence: Wanted, now_ms: int) -> Standing:
    """Whether it holds at `now_ms`, or when it does next."""
    if silence.ends_at_ms <= now_ms:
        return Standing("over")
    from_ms = max(now_ms, silence.starts_at_ms)
    if silence.recurrence is None:
        return Standing("holds") if from_ms == now_ms else Standing("waits", from_ms)
    rule = recurrence.parse(silence.recurrence)
    if recurrence.covers(rule, from_ms):
        return Standing("holds") if from_ms == now_ms else Standing("waits", from_ms)
    next_ms = recurrence.next_start_ms(rule, from_ms)
    return Standing("waits", next_ms) if next_ms < silence.ends_at_ms else Standing("over")


def again_words(rule: Mapping[str, Any] | None) -> str | None:
    """A recurrence in words: `tue, thu at 22:00 for 4h, Europe/Berlin`."""
    if rule is None:
        return None
    parsed = recurrence.parse(rule)
    every = len(parsed.days) == len(recurrence.DAYS)
    days = "every day" if every else ", ".join(recurrence.DAYS[day] for day in sorted(parsed.days))
    return f"{days} at {parsed.start:%H:%M} for {age(parsed.duration_ms)}, {parsed.zone.key}"


def never_ends(ends_at: datetime) -> bool:
    """True for the end of what goes on for good."""
    return round(ends_at.timestamp() * 1000) >= NEVER_ENDS_MS
