"""What every page knows: who asks, what time it is, where it may go."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from sqlalchemy import Engine
from starlette.routing import Match

from monitor.api.access import LOCAL_USER
from monitor.api.dashboard.render import epoch_ms
from monitor.clock import Clock
from monitor.sources.base import is_file
from storage import queries

EVENTS_PATH = "/api/v1/events"
NAVIGATION = (
    ("/", "Incidents"),
    ("/series", "Series"),
    ("/models", "Models"),
    ("/sources", "Sources"),
    ("/silences", "Silences"),
    ("/deliveries", "Deliveries"),
)
BEHIND_MS = 15 * 60_000
"""Event time this far behind the clock is worth saying."""


def base(request: Request, engine: Engine, clock: Clock) -> dict[str, Any]:
    """Context of the layout.

    `now_ms` is the clock's time, or the end of the log when every partition is a file that was read to its
    end: ages on a page of last month's log would otherwise all say "a month".
    """
    wall_ms = clock.now_ms()
    sources = queries.sources(engine)
    marks = [epoch_ms(row["watermark"]) for row in sources if row["watermark"] is not None]
    newest_ms = max(marks, default=None)
    files = bool(sources) and all(is_file(row["topic"]) for row in sources)
    recorded = files and all(row["finished"] for row in sources) and newest_ms is not None
    user = getattr(request.state, "user", None)
    return {
        "path": request.url.path,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "navigation": NAVIGATION,
        "user": str(getattr(user, "name", user)) if user is not None else "",
        "signed_in": user not in (None, LOCAL_USER),
        "may_write": bool(getattr(request.state, "may_write", True)),
        "events_path": EVENTS_PATH if _has_route(request, EVENTS_PATH) else "",
        "sources": sources,
        "wall_ms": wall_ms,
        "now_ms": newest_ms if recorded and newest_ms is not None else wall_ms,
        "newest_ms": newest_ms,
        "newest": queries.time_of(newest_ms),
        "recorded": recorded,
        "behind_ms": wall_ms - newest_ms if newest_ms is not None and not recorded else 0,
        "behind_limit_ms": BEHIND_MS,
    }


def _has_route(request: Request, path: str) -> bool:
    """True when the application answers GET at `path`: the pages may be served without the API."""
    asked = {**request.scope, "path": path, "method": "GET", "root_path": ""}
    return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)


def paging(request: Request, *, page: int, size: int, total: int) -> dict[str, Any]:
    """Numbers and addresses of the page before and after; the other parts of the query stay."""
    last = max(1, -(-total // size))

    def href(number: int) -> str:
        rest = [(k, v) for k, v in request.query_params.multi_items() if k not in ("page", "part") and v]
        return f"{request.url.path}?{urlencode([*rest, ('page', str(number))])}"

    return {
        "page": page,
        "last": last,
        "total": total,
        "first_row": min(total, (page - 1) * size + 1),
        "last_row": min(total, page * size),
        "before": href(page - 1) if page > 1 else None,
        "after": href(page + 1) if page < last else None,
    }
