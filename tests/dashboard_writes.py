"""The paths that the pages post to, for an application that has none: the real actions behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from sqlalchemy import Engine, func, select, update
from starlette.exceptions import HTTPException

from monitor.clock import SystemClock
from monitor.config import Settings
from monitor.output import parse_duration_ms
from monitor.people import people
from storage import schema
from storage.models import ModelRegistry
from storage.schema import table

EVENTS, DELIVERIES = table(schema.IncidentEventTable), table(schema.DeliveryTable)


def add_missing(app: FastAPI, engine: Engine) -> None:
    """Add the routes to `app` unless it has them."""
    if any(path.endswith("/acknowledge") for path in app.openapi()["paths"]):
        return
    app.openapi_schema = None
    app.include_router(_incidents(engine))
    app.include_router(_others(engine))


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("x-inferwatch") != "1":
        raise HTTPException(403, "the header X-Inferwatch is missing")
    return dict(await request.json()) if await request.body() else {}


def _incidents(engine: Engine) -> APIRouter:
    api = APIRouter(prefix="/api/v1/incidents/{incident_id}")
    actions, now_ms = people(engine, Settings()), SystemClock().now_ms

    @api.post("/acknowledge")
    async def acknowledge(incident_id: str, request: Request) -> Response:
        body = await _body(request)
        actions.acknowledge(incident_id, by="tester", now_ms=now_ms(), reason=body.get("comment", ""))
        return Response(status_code=204)

    @api.post("/resolve")
    async def resolve(incident_id: str, request: Request) -> Response:
        body = await _body(request)
        if body.get("comment") == "refuse me":
            raise HTTPException(409, "somebody else was faster")
        actions.resolve(incident_id, by="tester", now_ms=now_ms(), reason=body.get("comment", ""))
        return Response(status_code=204)

    @api.post("/label")
    async def label(incident_id: str, request: Request) -> Response:
        body = await _body(request)
        comment = body.get("comment", "")
        actions.label(incident_id, body["label"], by="tester", now_ms=now_ms(), comment=comment)
        return Response(status_code=204)

    @api.post("/notes")
    async def note(incident_id: str, request: Request) -> Response:
        actions.note(incident_id, (await _body(request))["text"], by="tester", now_ms=now_ms())
        return Response(status_code=204)

    return api


def _others(engine: Engine) -> APIRouter:
    api = APIRouter(prefix="/api/v1")
    actions, now_ms, registry = people(engine, Settings()), SystemClock().now_ms, ModelRegistry(engine)

    @api.post("/silences")
    async def silence(request: Request) -> Response:
        body = await _body(request)
        start_ms = now_ms()
        end_ms = start_ms + parse_duration_ms(body["for"])
        made = actions.silence(
            body["matchers"],
            starts_at_ms=start_ms,
            ends_at_ms=end_ms,
            by="tester",
            now_ms=start_ms,
            comment=body["comment"],
        )
        return JSONResponse({"silence_id": made.silence_id}, 201)

    @api.delete("/silences/{silence_id}")
    async def end(silence_id: str, request: Request) -> Response:
        await _body(request)
        return Response(status_code=204 if actions.end_silence(silence_id, now_ms()) else 404)

    @api.post("/models/rollback")
    async def rollback(request: Request) -> Response:
        await _body(request)
        return JSONResponse({"version": registry.rollback()})

    @api.post("/models/{version}/promote")
    async def promote(version: str, request: Request) -> Response:
        await _body(request)
        return Response(status_code=204 if registry.promote(version) else 404)

    @api.post("/deliveries/{delivery_id}/retry")
    async def retry(delivery_id: str, request: Request) -> Response:
        await _body(request)
        with engine.begin() as connection:
            again = update(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id)
            connection.execute(again.values(status="pending", due_at_ms=now_ms()))
        return Response(status_code=204)

    @api.get("/events")
    def events() -> Response:
        return StreamingResponse(_changes(engine), media_type="text/event-stream")

    return api


async def _changes(engine: Engine) -> AsyncIterator[str]:
    seen = None
    while True:
        with engine.connect() as connection:
            newest = connection.execute(select(func.max(EVENTS.c.id))).scalar()
        if seen is not None and newest != seen:
            yield f"event: incident\ndata: {newest}\n\n"
        elif seen is None:
            yield ": hello\n\n"
        seen = newest
        await asyncio.sleep(0.1)
