"""Charts in a terminal: a feature over time with its expected band, as plain text. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")
SPARKS = "▁▂▃▄▅▆▇█"
DOT, ALARM, BAND, GAP = "•", "◆", "░", " "


@dataclass(frozen=True, slots=True)
class Point:
    value: float | None  # None: nothing to measure
    is_anomalous: bool = False


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """One line of at most `width` characters, the highest value of each stretch; "" without values."""
    columns = [_highest(part) for part in _stretches(values, width)]
    known = [v for v in columns if v is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = high - low

    def mark(value: float | None) -> str:
        if value is None:
            return GAP
        share = (value - low) / span if span > 0 else 0.0
        return SPARKS[min(int(share * len(SPARKS)), len(SPARKS) - 1)]

    return "".join(mark(v) for v in columns)


def plot(
    points: Sequence[Point],
    *,
    low: float | None,
    high: float | None,
    width: int = 72,
    height: int = 8,
) -> list[str]:
    """`height` lines of at most `width` characters without labels, the top one first; [] without values.

    `low` and `high` bound the expected band (shaded); a diamond is an anomalous window. Where several windows
    share a column, an anomalous one is shown before others, and of these the one farthest from the band.
    """
    columns = [_standing_out(part, low, high) for part in _stretches(points, width)]
    bottom, top = scale(points, low, high)
    if not math.isfinite(top):
        return []
    rows = []
    step = (top - bottom) / height
    for row in range(height):
        floor, ceiling = top - (row + 1) * step, top - row * step
        in_band = _known(low) and _known(high) and float(low or 0.0) < ceiling and float(high or 0.0) >= floor
        line = [BAND if in_band else GAP] * len(columns)
        for x, point in enumerate(columns):
            if point.value is not None and _row_of(point.value, bottom, top, height) == row:
                line[x] = ALARM if point.is_anomalous else DOT
        rows.append("".join(line).rstrip())
    return rows


def labelled(
    points: Sequence[Point], *, low: float | None, high: float | None, number: Callable[[float], str]
) -> list[str]:
    """`plot` with its scale on the left; [] without values."""
    lines = plot(points, low=low, high=high)
    if not lines:
        return []
    bottom, top = scale(points, low, high)
    labels = [number(top), *[""] * (len(lines) - 2), number(bottom)]
    width = max(map(len, labels))
    return [f"{label:>{width}} ┤{line}" for label, line in zip(labels, lines, strict=True)]


def scale(points: Sequence[Point], low: float | None, high: float | None) -> tuple[float, float]:
    """Smallest and largest value to show; (inf, -inf) without any."""
    shown = [p.value for p in points if p.value is not None and math.isfinite(p.value)]
    if not shown:
        return math.inf, -math.inf
    shown += [bound for bound in (low, high) if bound is not None and math.isfinite(bound)]
    bottom, top = min(shown), max(shown)
    return (bottom, top) if top > bottom else (bottom - 1.0, top + 1.0)


def _row_of(value: float, bottom: float, top: float, height: int) -> int:
    if not math.isfinite(value):
        return -1
    return min(int((top - value) / (top - bottom) * height), height - 1)


def _stretches(values: Sequence[T], width: int) -> list[Sequence[T]]:
    """The values in at most `width` runs of nearly equal length, in order, none empty."""
    count = min(width, len(values))
    bounds = [round(n * len(values) / count) for n in range(count + 1)] if count else []
    return [values[a:b] for a, b in pairwise(bounds)]


def _highest(part: Sequence[float | None]) -> float | None:
    return max((v for v in part if v is not None and math.isfinite(v)), default=None)


def _standing_out(part: Sequence[Point], low: float | None, high: float | None) -> Point:
    centre = ((low or 0.0) + (high or 0.0)) / 2 if _known(low) and _known(high) else 0.0
    known = [p for p in part if p.value is not None]
    return max(known, key=lambda p: (p.is_anomalous, abs((p.value or 0.0) - centre)), default=Point(None))


def _known(bound: float | None) -> bool:
    return bound is not None and math.isfinite(bound)
