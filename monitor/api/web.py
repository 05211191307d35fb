"""What every answer has: problem documents for errors, and headers that keep a page to this origin."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.api.problems import problem
from storage import queries, text
from storage.names import UnknownIncident

log = structlog.get_logger()

MAX_ERRORS = 20

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # no-referrer would make forms send "Origin: null"
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class SecurityHeaders:
    """ASGI middleware: the headers above on every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def install(app: FastAPI) -> None:
    """Give `app` the error handlers."""

    @app.exception_handler(HTTPException)
    def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, text.clean(str(error.detail), 1_000))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [
            {"at": text.clean(".".join(map(str, e["loc"])), 200), "message": text.clean(e["msg"], 500)}
            for e in error.errors()[:MAX_ERRORS]
        ]
        first = wrong[0]
        return problem(422, f"{first['at']}: {first['message']}", errors=wrong)

    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeout)
    def on_database_error(request: Request, error: Exception) -> JSONResponse:
        log.warning("http_database_error", path=request.url.path, error=str(error).splitlines()[0][:300])
        return problem(503, "the database does not answer; try again")


def one_incident(engine: Engine, reference: str) -> dict[str, Any]:
    """An incident by its id or a unique beginning of it; a 404 problem without one."""
    return queries.incident(engine, incident_id_of(engine, reference))


def incident_id_of(engine: Engine, reference: str) -> str:
    """The id meant by an id or a unique beginning of one; a 404 problem without one."""
    if "\0" in reference:  # PostgreSQL refuses it in any text
        raise HTTPException(404, "no such incident")
    try:
        return queries.full_id(engine, reference)
    except UnknownIncident as error:
        raise HTTPException(404, str(error.args[0])) from None
