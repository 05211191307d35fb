"""`inferwatch top`: what is going on, as a live view."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.clock import SystemClock
from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, looking
from monitor.output import age, cell, clean, print_json, severity_style

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

PIPE_WIDTH = 160


def top(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    once: Annotated[bool, typer.Option("--once", help="print it once and end")] = False,
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, max=3_600, help="between looks")
    ] = 2.0,
) -> None:
    """What is broken, which series score highest, what was sent: live, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from storage import terminal

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    with looking(config, database) as engine:
        if as_json:
            print_json(terminal.overview(engine))
            return
        if once or not console.is_terminal:
            console.print(view(terminal.overview(engine), SystemClock().now_ms()))
            return
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    live.update(view(terminal.overview(engine), SystemClock().now_ms()), refresh=True)
                    time.sleep(every_s)
        except KeyboardInterrupt:
            return


def view(seen: Mapping[str, Any], now_ms: int) -> Group:
    """The whole screen for one overview."""
    from rich.console import Group
    from rich.text import Text

    totals, sent = seen["totals"], seen["deliveries"]
    waiting = sent.get("pending", 0) + sent.get("claimed", 0)
    head = Text.assemble(
        ("Inferwatch ", "bold"),
        f"event time {cell(seen['event_time'])}  ",
        f"{totals['records']:,} records, {totals['rejected']:,} rejected, {totals['late']:,} late  ",
        f"{totals['series']:,} series, {totals['windows']:,} windows",
    )
    told = Text.assemble(
        f"notifications: {sent.get('delivered', 0):,} delivered, {waiting:,} waiting, ",
        (f"{sent.get('dead', 0):,} given up", "bold red" if sent.get("dead") else ""),
    )
    parts = [head, told, Text(), _incidents(seen["incidents"], seen["event_time"], now_ms), Text()]
    return Group(*parts, _series(seen["series"]))


def _incidents(rows: list[Mapping[str, Any]], event_time: Any, now_ms: int) -> Table | Any:
    from rich.text import Text

    if not rows:
        return Text("nothing is broken", style="green")
    at_ms = now_ms if event_time is None else min(now_ms, round(event_time.timestamp() * 1000))
    table = _table("severity", "status", "since", "lasting", "series", "incident", "title")
    for row in rows:
        lasting = age(at_ms - round(row["started_at"].timestamp() * 1000))
        table.add_row(
            Text(str(row["severity"]), style=severity_style(str(row["severity"]))),
            str(row["status"]),
            cell(row["started_at"]),
            lasting,
            str(row["series_count"]),
            str(row["incident_id"])[:8],
            Text(clean(str(row["title"]))),
        )
    return table


def _series(rows: list[Mapping[str, Any]]) -> Table | Any:
    from rich.text import Text

    table = _table("score", "", "series", "newest window")
    for row in rows:
        score = float(row["last_score"])
        table.add_row(
            f"{score:.3f}",
            Text("█" * round(score * 20), style="red" if row["last_is_anomalous"] else "cyan"),
            Text(clean(str(row["series"]))),
            cell(row["last_window_start"]),
        )
    return table if rows else Text("no series yet")


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
