"""`inferwatch top`: what is going on, as a live view."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.clock import SystemClock
from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, looking
from monitor.output import print_json

if TYPE_CHECKING:
    from rich.console import Console

    Look = Callable[[], Mapping[str, Any]]

PIPE_WIDTH = 160
ONCE_INCIDENTS = 20


def top(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    once: Annotated[bool, typer.Option("--once", help="print it once and end")] = False,
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, max=3_600, help="between looks")
    ] = 2.0,
) -> None:
    """What is broken, which series score highest, what was sent: live, until q or Ctrl-C."""
    from rich.console import Console

    from monitor.commands.top_view import Cut, view
    from storage import terminal

    def look() -> Mapping[str, Any]:
        with looking(config, database) as source:  # opened anew: a database may be restarted in between
            return terminal.overview(source)

    if as_json:
        print_json(look())
        return
    is_terminal = sys.stdout.isatty()
    console = Console() if is_terminal else Console(width=PIPE_WIDTH)
    if once or not is_terminal or console.is_dumb_terminal:
        cut = Cut(console.width, ONCE_INCIDENTS, folded=True)
        console.print(view(look(), SystemClock().now_ms(), cut))
        return
    try:
        _watch(console, look, every_s)
    except KeyboardInterrupt:
        return


def _watch(console: Console, look: Look, every_s: float) -> None:
    """The whole screen, until somebody ends it. A first look that fails is an error; a later one is shown."""
    from rich.live import Live

    from monitor.commands.keyboard import Keyboard
    from monitor.commands.top_view import Footer, cut_to, screen

    seen, failure, first = look(), None, 0
    looked_ms, due_s = SystemClock().now_ms(), time.monotonic() + every_s
    with Keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            cut = cut_to(seen, looked_ms, console.size, first)
            live.update(screen(seen, Footer(looked_ms, every_s, failure), cut), refresh=True)
            key = keys.wait(due_s - time.monotonic())
            if key == "end":
                return
            if key == "stop":
                live.stop()
                keys.suspend()
                live.start()
            first = _moved(cut.first, key, len(seen["incidents"]), cut.incidents)
            if key == "now" or time.monotonic() >= due_s:
                found, failure = _looked(look)
                looked_ms, due_s = SystemClock().now_ms(), time.monotonic() + every_s
                seen = seen if found is None else found


def _looked(look: Look) -> tuple[Mapping[str, Any] | None, str | None]:
    """What there is, or why it cannot be told just now."""
    from monitor.cli import exit_code, first_line

    try:
        return look(), None
    except Exception as error:
        if exit_code(error) is None:
            raise
        return None, first_line(error)


def _moved(first: int, key: str | None, rows: int, page: int) -> int:
    """The place of the incident on top after a key."""
    if key in ("first", "last"):
        return 0 if key == "first" else rows
    return max(first + {"up": -1, "down": 1, "page up": -page, "page down": page}.get(key or "", 0), 0)
