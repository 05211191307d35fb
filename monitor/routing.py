"""Which channel hears of an incident, and when: pure decisions with named reasons.

Of the routes that name a channel, the first that matches decides. A channel that no route names hears of
everything at once. Times are event times, so a repeated transaction decides the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal
from zoneinfo import ZoneInfo

from monitor.config_channels import RouteSettings, spans_of
from monitor.timespans import inside

Action = Literal["send", "hold", "digest", "skip"]


@dataclass(frozen=True, slots=True)
class About:
    """What routes look at."""

    severity: str
    models: frozenset[str]
    tenants: frozenset[str]  # guilty ones


@dataclass(frozen=True, slots=True)
class Routed:
    """`route` counts from 1 as in the file; 0 = no route names the channel, or none of them matches.

    Reasons: "no_route_names_it", "matched", "quiet_hours", "group_wait", "digest", and what kept the last
    route that names the channel from matching: "severity", "model", "tenant", "hours".
    """

    action: Action
    reason: str
    route: int = 0


def decide(channel: str, about: About, at_ms: int, routes: Sequence[RouteSettings]) -> Routed:
    """What becomes of news about an incident for one channel. Pure."""
    missed = ""
    for number, route in enumerate(routes, start=1):
        if channel not in route.channels:
            continue
        missed = mismatch(route, about, at_ms)
        if missed:
            continue
        if route.digest != "never":
            return Routed("digest", "digest", number)
        if about.severity not in route.quiet_except and is_quiet(route, at_ms):
            return Routed("hold", "quiet_hours", number)
        return Routed("send", "matched", number)
    return Routed("skip", missed) if missed else Routed("send", "no_route_names_it")


def wait(routed: Routed, *, is_first: bool, age_ms: int, wait_s: float) -> Routed:
    """Hold the first news of a young incident back, so that it comes with what joins it. Pure."""
    if routed.action == "send" and is_first and age_ms < wait_s * 1000:
        return Routed("hold", "group_wait", routed.route)
    return routed


def why_held(routed: Routed) -> str:
    """In words, for a channel whose action is "hold"."""
    if routed.reason == "group_wait":
        return "group_wait_s, for what may join it,"
    return f"quiet hours of route {routed.route}"


def mismatch(route: RouteSettings, about: About, at_ms: int | None) -> str:
    """Why a route does not match, "" when it does; its hours count only with a time."""
    if route.severities and about.severity not in route.severities:
        return "severity"
    if route.models and not _any_like(about.models, route.models):
        return "model"
    if route.tenants and not _any_like(about.tenants, route.tenants):
        return "tenant"
    if not route.hours or at_ms is None:
        return ""
    return "" if inside(spans_of(tuple(route.hours)), at_ms, ZoneInfo(route.time_zone)) else "hours"


def is_quiet(route: RouteSettings, at_ms: int) -> bool:
    return bool(route.quiet_hours) and inside(
        spans_of(tuple(route.quiet_hours)), at_ms, ZoneInfo(route.time_zone)
    )


def reminder_due(
    told_at_ms: int | None, at_ms: int, status: str, routed: Routed, routes: Sequence[RouteSettings]
) -> str:
    """Whether a channel is to be reminded of an incident at `at_ms`: "due", or why not. Pure.

    Reasons: "due", "not_open" (acknowledged or resolved), "not_told", "not_routed", "no_repeat", "not_yet".
    """
    if status != "open":
        return "not_open"
    if told_at_ms is None:
        return "not_told"
    if routed.action != "send":
        return "not_routed"
    repeat_s = routes[routed.route - 1].repeat_s if routed.route else 0.0
    if repeat_s <= 0:
        return "no_repeat"
    return "due" if at_ms - told_at_ms >= repeat_s * 1000 else "not_yet"


def _any_like(names: Iterable[str], patterns: Iterable[str]) -> bool:
    wanted = [_pattern(pattern) for pattern in patterns]
    return any(pattern.fullmatch(name) for name in names for pattern in wanted)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)
