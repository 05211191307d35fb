"""The HTTP API under /api/v1, health, metrics, and the pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from monitor.api import access, limits, login, pages, reads, stream, web, writes
from monitor.api.described import DEFAULT, refusals
from monitor.api.guard import BURST_S, Guard
from monitor.api.partitions import Health
from monitor.api.problems import problem
from monitor.api.replies import Problem
from monitor.clock import Clock, SystemClock
from monitor.config import Settings
from monitor.metrics import REGISTRY
from monitor.output import plain
from storage import queries
from storage.tokens import Tokens

DESCRIPTION = """Incidents of models in production. Times are RFC 3339 UTC, errors RFC 9457 problems.

Lists are arrays; a `Link` header with `rel="next"` leads to the next page. Answers carry a weak `ETag`.
Changes need a bearer token of scope write, or a session and the header `X-Inferwatch: 1`."""


def create_app(
    engine: Engine,
    *,
    health: Health,
    settings: Settings | None = None,
    clock: Clock | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application on a database; `health` says how the process behind it is (shown by /healthz).

    Answers are read from the database at each request; nothing is cached. `on_change` is called after a
    change that may have put something into the outbox.
    """
    settings, clock = settings or Settings(), clock or SystemClock()
    http, tokens = settings.http, Tokens(engine)
    app = FastAPI(
        title="Inferwatch",
        version="1",
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=DEFAULT,
    )
    web.install(app)
    rate_per_s = http.max_requests_per_minute / 60
    app.add_middleware(
        Guard,
        tokens=tokens,
        settings=http,
        clock=clock,
        policy=access.Policy(http.require_token, access.is_loopback(http.host)),
        buckets=limits.Buckets(rate_per_s, max(20.0, rate_per_s * BURST_S), clock.monotonic_s),
    )
    app.add_middleware(web.SecurityHeaders)
    app.include_router(reads.router(engine, health, clock, settings.detection))
    app.include_router(stream.router(engine))
    app.include_router(writes.router(engine, settings, clock, on_change))
    app.include_router(login.router(login.Sessions(tokens, clock, http.session_h)))
    app.include_router(_operations(engine, health))
    app.include_router(pages.router(engine, detection=settings.detection, health=health))
    pages.missing_pages(app, engine, clock)
    _describe_security(app)
    return app


def _operations(engine: Engine, health: Health) -> APIRouter:
    router = APIRouter(tags=["operations"])

    def shown(request: Request, status: str) -> JSONResponse:
        """The state of the process, for those who may read; that it lives, for everybody."""
        details = health() if request.state.may_read else {}
        return JSONResponse(plain({**details, "status": status}))

    @router.get("/healthz", summary="The process is alive")
    def healthz(request: Request) -> JSONResponse:
        return shown(request, "ok")

    @router.get("/readyz", summary="The process can do its work", responses=refusals(503))
    def readyz(request: Request) -> JSONResponse:
        state = health()
        try:
            queries.sources(engine)
        except SQLAlchemyError:
            return problem(503, "the database does not answer")
        if state.get("database_reachable") is False:
            return problem(503, "the last commit to the database failed; it is tried again")
        if state.get("stuck"):
            return problem(503, "the reading loop does not turn")
        return shown(request, "ready")

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals(401)},
    )
    def metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return router


def _describe_security(app: FastAPI) -> None:
    """Name the two kinds of credentials in the description; routes that are open say so themselves."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = make()
            schemes = {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": login.SESSION_COOKIE},
            }
            components = described.setdefault("components", {})
            components["securitySchemes"] = schemes
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            described["security"] = [{"token": []}, {"session": []}, {}]
            for path in ("/healthz", "/readyz"):
                described["paths"][path]["get"]["security"] = []
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
