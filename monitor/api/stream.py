"""Live changes as server-sent events: hints with ids, so that a page knows what to read again."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool

from monitor.api.described import refusals
from monitor.api.problems import problem
from monitor.clock import rfc3339
from storage import history

MAX_STREAMS = 16
POLL_S, HEARTBEAT_S = 1.0, 15.0
WATCHED_DELIVERIES = 500
MAX_EVENTS = 1_000  # per look; the rest follows with the next one
_ID = re.compile(r"(\d{1,18})\.(\d{1,18})\.(\d{1,18})")


@dataclass(slots=True)
class Watcher:
    """Compares the database with what a listener knows; `look` is called again and again."""

    engine: Engine
    event_id: int | None = None  # None: from now on
    log: tuple[int, int] = (0, 0)  # records of all partitions, newest watermark (ms)
    deliveries: dict[str, tuple[str, int, str]] | None = None

    def look(self) -> list[tuple[str, dict[str, Any]]]:
        """(event, data) of everything that changed since the last look."""
        newest, records, mark_ms = history.newest_change(self.engine)
        states = history.delivery_states(self.engine, WATCHED_DELIVERIES)
        found: list[tuple[str, dict[str, Any]]] = []
        if self.event_id is None or self.event_id > newest:  # from now on, or another database
            self.event_id, self.log, self.deliveries = newest, (records, mark_ms), states
            return []
        for row in history.events_after(self.engine, self.event_id, MAX_EVENTS):
            self.event_id = int(row.pop("id"))
            found.append(("incident", row))
        if self.deliveries is None:  # a listener that was away: something may have happened
            found.append(("delivery", {"delivery_id": None, "incident_id": None}))
        else:
            for delivery_id, state in states.items():
                if self.deliveries.get(delivery_id) != state:
                    told = dict(zip(("status", "attempts", "incident_id"), state, strict=True))
                    found.append(("delivery", {"delivery_id": delivery_id, **told}))
        self.deliveries = states
        if (records, mark_ms) != self.log:
            self.log = (records, mark_ms)
            found.append(("window", {"records": records, "watermark": rfc3339(mark_ms)}))
        return found

    @property
    def mark(self) -> str:
        return f"{self.event_id or 0}.{self.log[0]}.{self.log[1]}"


@dataclass(slots=True)
class Streams:
    """The open streams of one server."""

    engine: Engine
    poll_s: float = POLL_S
    heartbeat_s: float = HEARTBEAT_S
    open: int = field(default=0, init=False)

    async def lines(self, last_event_id: str | None) -> AsyncIterator[str]:
        """Text of the stream. Ends only with the connection."""
        known = _ID.fullmatch(last_event_id or "")
        watcher = Watcher(self.engine)
        if known is not None:
            watcher.event_id, watcher.log = int(known[1]), (int(known[2]), int(known[3]))
        self.open += 1
        try:
            quiet_s, begun = 0.0, False
            while True:
                try:
                    changes = await run_in_threadpool(watcher.look)
                except (DBAPIError, PoolTimeout):
                    changes = []
                    yield ": the database does not answer\n\n"
                if not begun:  # whoever reads this line hears of everything that comes after it
                    begun = True
                    yield "retry: 3000\n\n"
                for event, data in changes:
                    yield f"event: {event}\nid: {watcher.mark}\ndata: {json.dumps(data)}\n\n"
                quiet_s = 0.0 if changes else quiet_s + self.poll_s
                if quiet_s >= self.heartbeat_s:
                    quiet_s = 0.0
                    yield ": heartbeat\n\n"
                await asyncio.sleep(self.poll_s)
        finally:
            self.open -= 1


def router(engine: Engine, streams: Streams | None = None) -> APIRouter:
    api = APIRouter(prefix="/api/v1", tags=["data"])
    live = streams or Streams(engine)

    @api.get(
        "/events",
        summary="Live changes as server-sent events",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "events `incident`, `delivery` and `window`, and heartbeat comments",
                "content": {
                    "text/event-stream": {
                        "schema": {"type": "string"},
                        "example": "event: incident\nid: 12.3400.1769860800000\n"
                        'data: {"incident_id": "3f6c...", "revision": 2, "kind": "acknowledged"}\n\n',
                    }
                },
            },
            **refusals(401, 429, 503),
        },
    )
    async def events(
        request: Request,
        last_event_id: Annotated[str | None, Header(description="go on behind this event")] = None,
    ) -> Response:
        """Hints, not data: read what they name again. A listener that was away sends Last-Event-ID."""
        if live.open >= MAX_STREAMS:
            answer: Response = problem(503, f"{MAX_STREAMS} listeners are connected; try again later")
            answer.headers["retry-after"] = "10"
            return answer
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(live.lines(last_event_id), media_type="text/event-stream", headers=headers)

    return api
