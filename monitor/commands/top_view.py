"""What `inferwatch top` shows: as a text of any length, or cut to a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.layout import Layout
from rich.table import Table
from rich.text import Text

from monitor.clock import rfc3339
from monitor.output import age, cell, clean, severity_style

INCIDENT_COLUMNS = (
    *(("severity", 0), ("status", 80), ("since", 110), ("lasting", 0), ("series", 110)),
    *(("incident", 60), ("title", 0)),
)
"""A column, and how wide a screen must be to show it."""
SERIES_COLUMNS = (("score", 0), ("", 60), ("newest window", 80), ("series", 0))
TABLE_LINES = 3  # a blank one, the names, a rule
LEAST_INCIDENTS, LEAST_SERIES = 3, 3
BAR = 20
HEAD_SHARE = 4  # a quarter of the lines of a screen at most
BARE = 10  # a screen of fewer lines shows no names of columns


@dataclass(frozen=True, slots=True)
class Footer:
    """When the database was looked at, how often it is, and why the last look brought nothing."""

    looked_ms: int
    every_s: float
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of an overview is shown."""

    width: int
    incidents: int
    first: int = 0  # the place of the incident on top
    series: int | None = None
    head: int | None = None  # lines
    folded: bool = False  # long titles go on in the next line instead of being cut
    bare: bool = False  # no names of columns


def view(seen: Mapping[str, Any], now_ms: int, cut: Cut) -> Group:
    """One overview: what was read and sent, incidents, series."""
    blank = [] if cut.bare else [Text()]
    parts: list[RenderableType] = [*_head(seen, now_ms, cut.width)[: cut.head]]
    parts += [*blank, _incidents(seen, now_ms, cut)]
    series = seen["series"][: cut.series]
    if series or not seen["series"]:
        parts += [*blank, _series(series, cut)]
    return Group(*parts)


def cut_to(seen: Mapping[str, Any], now_ms: int, size: ConsoleDimensions, first: int) -> Cut:
    """What fits on a screen above its last line: the incidents first, but always some series where there is
    room for both."""
    head, bare = max(size.height // HEAD_SHARE, 1), size.height < BARE
    room = size.height - len(_head(seen, now_ms, size.width)[:head]) - 1
    incidents, series = len(seen["incidents"]), len(seen["series"])
    names = 0 if bare else TABLE_LINES
    listed = names + (incidents < seen["going_on"])
    if incidents + listed + names + min(series, LEAST_SERIES) > room:
        listed = names + 1
    rest = room - listed - names
    if series and rest >= LEAST_SERIES + min(incidents, LEAST_INCIDENTS):
        for_series = min(series, max(rest - incidents, LEAST_SERIES))
        most = max(rest - for_series, 1)
    else:
        for_series, most = 0, max(room - listed, 1)
    first = min(first, max(incidents - most, 0))
    return Cut(size.width, most, first, for_series, head, bare=bare)


def screen(seen: Mapping[str, Any], footer: Footer, cut: Cut) -> Layout:
    """One overview on the whole screen; keys in the last line."""
    layout = Layout()
    above = Layout(view(seen, footer.looked_ms, cut))
    layout.split_column(above, Layout(_last_line(footer, cut.width), size=1))
    return layout


def _head(seen: Mapping[str, Any], now_ms: int, width: int) -> list[Text]:
    """What was read and what was sent, in lines no longer than `width` where one fits."""
    totals, sent = seen["totals"], seen["deliveries"]
    waiting, dead = sent.get("pending", 0) + sent.get("claimed", 0), sent.get("dead", 0)
    event_time = seen["event_time"]
    behind = "" if event_time is None else f" ({age(now_ms - _ms(event_time))} ago)"
    read = [
        Text("Inferwatch", style="bold"),
        Text(f"event time {cell(event_time)}{behind}"),
        Text(f"{totals['records']:,} records, {totals['rejected']:,} rejected, {totals['late']:,} late"),
        Text(f"{totals['series']:,} series, {totals['windows']:,} windows"),
    ]
    told = [Text(f"notifications: {sent.get('delivered', 0):,} delivered, {waiting:,} waiting")]
    if dead:
        told = [
            Text(f"notifications: {dead:,} given up", style="bold red"),
            told[0][len("notifications: ") :],
        ]
    lines = [_packed(read, "  ", width), _packed(told, ", ", width)]
    return [line for part in (reversed(lines) if dead else lines) for line in part]


def _packed(parts: Sequence[Text], between: str, width: int) -> list[Text]:
    """The parts one behind another, in as few lines as they fit into."""
    lines = [parts[0].copy()]
    for part in parts[1:]:
        if len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1].append(between).append_text(part)
        else:
            lines.append(part.copy())
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _incidents(seen: Mapping[str, Any], now_ms: int, cut: Cut) -> RenderableType:
    rows = seen["incidents"][cut.first : cut.first + cut.incidents]
    if not rows:
        return Text("nothing is broken", style="green")
    event_time = seen["event_time"]
    at_ms = now_ms if event_time is None else min(now_ms, _ms(event_time))
    table = _Rows(INCIDENT_COLUMNS, cut)
    for row in rows:
        severity = str(row["severity"])
        table.add(
            {
                "severity": Text(severity, style=severity_style(severity)),
                "status": str(row["status"]),
                "since": cell(row["started_at"]),
                "lasting": age(at_ms - _ms(row["started_at"])),
                "series": str(row["series_count"]),
                "incident": str(row["incident_id"])[:8],
                "title": Text(clean(str(row["title"]))),
            }
        )
    above, below = cut.first, max(seen["going_on"] - cut.first - len(rows), 0)
    told = ", ".join([f"{above:,} above"] * (above > 0) + [f"{below:,} more"] * (below > 0))
    return Group(table.table, Text("  " + told, style="dim")) if told else table.table


def _series(rows: Sequence[Mapping[str, Any]], cut: Cut) -> RenderableType:
    if not rows:
        return Text("no series yet")
    table = _Rows(SERIES_COLUMNS, cut)
    for row in rows:
        score = float(row["last_score"])
        newest = cell(row["last_window_start"])
        bar = Text("█" * round(score * BAR), style="red" if row["last_is_anomalous"] else "cyan")
        name = Text(clean(str(row["series"])))
        table.add({"score": f"{score:.3f}", "": bar, "series": name, "newest window": newest})
    return table.table


class _Rows:
    """A table with those columns that a screen of this width has room for; the last one takes the rest."""

    def __init__(self, columns: Sequence[tuple[str, int]], cut: Cut) -> None:
        self._names = [name for name, needs in columns if cut.width >= needs]
        self.table = Table(
            box=SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            show_header=not cut.bare,
            expand=not cut.folded,
        )
        *most, last = self._names
        for name in most:
            self.table.add_column(name, no_wrap=True)
        if cut.folded:
            self.table.add_column(last, overflow="fold")
        else:
            self.table.add_column(last, no_wrap=True, overflow="ellipsis", ratio=1)

    def add(self, cells: Mapping[str, str | Text]) -> None:
        self.table.add_row(*(cells[name] for name in self._names))


def _last_line(footer: Footer, width: int) -> Text:
    if footer.failure is not None:
        told = f"cannot look: {clean(footer.failure)}; trying again every {footer.every_s:g} s"
        return Text(told, style="bold red", no_wrap=True, overflow="ellipsis")
    looked = f"looked at {rfc3339(footer.looked_ms // 1000 * 1000)}, every {footer.every_s:g} s"
    parts = [Text("q ends"), Text("space looks now"), Text("↑ ↓ scroll"), Text(looked)]
    line = _packed(parts, "  ", width)[0]
    line.stylize("dim")
    return line


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
