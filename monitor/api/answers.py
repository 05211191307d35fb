"""Answers of the reading routes: JSON with a weak ETag, 304 where nothing changed, links to next pages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from monitor.api import cursors
from monitor.clock import Clock
from monitor.output import parse_time, plain

Row = dict[str, Any]
NO_NUL = r"^[^\x00]*$"  # PostgreSQL refuses it in any text
Limit = Annotated[int, Query(ge=1, le=10_000, description="rows at most")]
Since = Annotated[
    str | None,
    Query(max_length=64, description="24h, 7d, 90m, or an RFC 3339 time", examples=["24h"]),
]
Text = Annotated[str | None, Query(max_length=512, pattern=NO_NUL)]
Cursor = Annotated[
    str | None,
    Query(max_length=cursors.MAX_LENGTH, description='as the `Link` header with rel="next" has it'),
]


def since_ms(since: str | None, clock: Clock) -> int | None:
    """The `since` of a request in ms; a 422 problem when it is no time."""
    if since is None:
        return None
    try:
        return parse_time(since, clock.now_ms())
    except (ValueError, OverflowError) as error:
        raise HTTPException(422, f"since: {error}") from None


def answer(request: Request, content: Any, link: str | None = None) -> Response:
    """The content, or 304 without it when If-None-Match has its tag."""
    shown = JSONResponse(plain(content))
    tag = f'W/"{hashlib.sha256(bytes(shown.body)).hexdigest()[:24]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if link is not None:
        headers["link"] = link
    if _matches(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    shown.headers.update(headers)
    return shown


def _matches(wanted: str | None, tag: str) -> bool:
    """RFC 9110's weak comparison of a list of tags with one."""
    if wanted is None:
        return False
    offered = [each.strip().removeprefix("W/") for each in wanted.split(",")]
    return "*" in offered or tag.removeprefix("W/") in offered


def page(
    request: Request,
    name: str,
    cursor: str | None,
    limit: int,
    read: Callable[[Sequence[int | str] | None, int], list[Row]],
    *,
    hidden: Sequence[str] = (),
) -> Response:
    """One page of the list `name`; `read(after, limit)` reads its rows in the list's order.

    One row more than wanted tells whether there is a next page. Windows are read newest first and shown
    oldest first, so that the newest are on the first page and each page draws as it is.
    """
    try:
        after = None if cursor is None else cursors.decode(name, cursor)
    except ValueError as error:
        raise HTTPException(422, f"cursor: {error}") from None
    rows = read(after, limit + 1)
    link = None
    if name == "windows":
        rows = rows[::-1]
    if len(rows) > limit:
        rows = rows[:limit]
        target = request.url.include_query_params(cursor=cursors.encode(name, rows[-1]))
        link = f'<{target.path}?{target.query}>; rel="next"'
    if name == "windows":
        rows = rows[::-1]
    return answer(request, [{k: v for k, v in row.items() if k not in hidden} for row in rows], link)
