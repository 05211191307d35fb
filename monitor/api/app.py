"""The HTTP API under /api/v1, health, metrics, and the pages. Everything here only reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from monitor.api import pages, web
from monitor.clock import SystemClock
from monitor.metrics import REGISTRY
from monitor.output import parse_time, plain
from storage import queries

NO_NUL = r"^[^\x00]*$"  # PostgreSQL refuses it in any text
Health = Callable[[], dict[str, Any]]
Limit = Annotated[int, Query(ge=1, le=10_000, description="rows at most")]
Since = Annotated[str | None, Query(description="24h, 7d, 90m, or an RFC 3339 time", max_length=64)]
Text = Annotated[str | None, Query(max_length=512, pattern=NO_NUL)]

PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {"description": "an RFC 9457 problem document", "content": {"application/problem+json": {}}}
}


def create_app(engine: Engine, *, health: Health) -> FastAPI:
    """The application on a database; `health` says how the process behind it is (shown by /healthz).

    Answers are read from the database at each request; nothing is cached.
    """
    app = FastAPI(
        title="Inferwatch",
        version="1",
        description="Incidents of models in production. Times are RFC 3339 UTC.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEM,
    )
    web.install(app)
    app.include_router(_api(engine))
    app.include_router(_operations(engine, health))
    app.include_router(pages.router(engine))
    return app


def since_ms(since: str | None) -> int | None:
    """The `since` of a request in ms; a 422 problem when it is no time."""
    if since is None:
        return None
    try:
        return parse_time(since, SystemClock().now_ms())
    except ValueError as error:
        raise HTTPException(422, f"since: {error}") from None


def _api(engine: Engine) -> APIRouter:
    api = APIRouter(prefix="/api/v1", tags=["data"])

    def answer(rows: Any) -> JSONResponse:
        return JSONResponse(plain(rows))

    @api.get("/incidents", summary="Incidents, newest first")
    def incidents(
        status: Literal["open", "acknowledged", "resolved"] | None = None,
        since: Since = None,
        limit: Limit = 100,
    ) -> JSONResponse:
        return answer(queries.incidents(engine, status=status, since_ms=since_ms(since), limit=limit))

    @api.get("/incidents/{incident_id}", summary="One incident with its alerts, events and deliveries")
    def incident(incident_id: str) -> JSONResponse:
        return answer(web.one_incident(engine, incident_id))

    @api.get("/alerts", summary="Alerts, newest first")
    def alerts(
        series: Text = None, incident_id: Text = None, since: Since = None, limit: Limit = 100
    ) -> JSONResponse:
        rows = queries.alerts(
            engine, series=series, incident_id=incident_id, since_ms=since_ms(since), limit=limit
        )
        return answer(rows)

    @api.get("/series", summary="Series with their newest score")
    def series(since: Since = None, limit: Limit = 100) -> JSONResponse:
        return answer(queries.series(engine, since_ms=since_ms(since), limit=limit))

    @api.get("/windows", summary="Windows of one series, oldest first")
    def windows(
        series: Annotated[str, Query(max_length=512, pattern=NO_NUL)],
        since: Since = None,
        limit: Limit = 1_000,
    ) -> JSONResponse:
        return answer(queries.windows(engine, series, since_ms=since_ms(since), limit=limit))

    @api.get("/deliveries", summary="Notifications and what became of them, newest first")
    def deliveries(
        status: Text = None, incident_id: Text = None, since: Since = None, limit: Limit = 100
    ) -> JSONResponse:
        rows = queries.deliveries(
            engine, status=status, incident_id=incident_id, since_ms=since_ms(since), limit=limit
        )
        return answer(rows)

    @api.get("/models", summary="Model versions, newest first")
    def models() -> JSONResponse:
        return answer(queries.models(engine))

    return api


def _operations(engine: Engine, health: Health) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="The process is alive")
    def healthz() -> JSONResponse:
        return JSONResponse(plain({"status": "ok", **health()}))

    @router.get("/readyz", summary="The process can do its work")
    def readyz() -> JSONResponse:
        state = health()
        try:
            queries.sources(engine)
        except SQLAlchemyError:
            return web.problem(503, "the database does not answer")
        if state.get("database_reachable") is False:
            return web.problem(503, "the last commit to the database failed; it is tried again")
        if state.get("stuck"):
            return web.problem(503, "the reading loop does not turn")
        return JSONResponse(plain({"status": "ready", **state}))

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return router
