"""Browsers show a token once and get a session: POST /login, POST /logout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from monitor.api.described import refusals
from monitor.api.problems import problem
from monitor.clock import Clock
from storage.tokens import Tokens

SESSION_COOKIE = "inferwatch_session"
HOUR_MS = 3_600_000
_UNKNOWN = {**refusals(401)[401]["content"], "text/html": {"schema": {"type": "string"}}}
_TOKEN = {"token": {"type": "string", "minLength": 1, "maxLength": 128, "examples": ["iw_..."]}}
_SCHEMA = {"type": "object", "required": ["token"], "properties": _TOKEN}
_LOGIN_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _SCHEMA},
        "application/x-www-form-urlencoded": {"schema": _SCHEMA},
    },
}


@dataclass(frozen=True, slots=True)
class Sessions:
    """What the two routes need."""

    tokens: Tokens
    clock: Clock
    session_h: float


def router(sessions: Sessions) -> APIRouter:
    routes = APIRouter(tags=["session"])

    @routes.get("/login", include_in_schema=False)
    def form(target: Annotated[str, Query(alias="next", max_length=2_048)] = "/") -> HTMLResponse:
        return login_page(target)

    @routes.post(
        "/login",
        summary="Open a session with a token",
        status_code=200,
        openapi_extra={"requestBody": _LOGIN_BODY, "security": []},
        responses={
            200: {"description": "JSON was sent: the cookie is set", "content": {"application/json": {}}},
            303: {"description": "a form was sent: the cookie is set, on to the page"},
            **refusals(403, 413, 422, 429, 503),
            401: {"description": "the token is not known", "content": _UNKNOWN},
        },
    )
    async def login(request: Request) -> Response:
        """A form or a JSON object with `token`; the cookie is HttpOnly and SameSite=Strict."""
        is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        fields = _fields(await request.body(), is_form)
        if fields is None:
            return problem(422, "send a form or a JSON object with the field token")
        return await _in_thread(_open, sessions, request.url.scheme == "https", is_form, fields)

    @routes.post(
        "/logout",
        summary="End the session",
        status_code=204,
        response_class=Response,
        responses={204: {"description": "the session, if there was one, has ended"}},
    )
    def logout(request: Request) -> Response:
        secret = request.cookies.get(SESSION_COOKIE)
        if secret:
            sessions.tokens.close_session(secret)
        answer = Response(status_code=204)
        answer.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    return routes


async def _in_thread(*call: object) -> Response:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(*call)  # type: ignore[arg-type]


def _fields(body: bytes, is_form: bool) -> dict[str, str] | None:
    """token and next; None for a body that has no token."""
    try:
        text = body.decode()
        if is_form:
            parsed: object = {name: values[0] for name, values in parse_qs(text, max_num_fields=10).items()}
        else:
            parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("token"), str) or not parsed["token"]:
        return None
    return {"token": parsed["token"].strip(), "next": str(parsed.get("next") or "/")}


def _open(sessions: Sessions, secure: bool, is_form: bool, fields: dict[str, str]) -> Response:
    now_ms = sessions.clock.now_ms()
    identity = sessions.tokens.check(fields["token"], now_ms)
    if identity is None:
        if is_form:
            return login_page(fields["next"], failed=True, status=401)
        return problem(401, "the token is not known")
    lifetime_ms = int(sessions.session_h * HOUR_MS)
    secret = sessions.tokens.open_session(identity, now_ms, lifetime_ms)
    if is_form:
        answer: Response = RedirectResponse(local_target(fields["next"]), status_code=303)
    else:
        answer = JSONResponse({"user": identity.name, "may_write": identity.scope == "write"})
    answer.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=lifetime_ms // 1000,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )
    return answer


def login_page(target: str = "/", *, failed: bool = False, status: int = 200) -> HTMLResponse:
    """The form; `target` is where a person wanted to go."""
    shown = _environment().get_template("login.html").render(next=local_target(target), failed=failed)
    return HTMLResponse(shown, status, headers={"cache-control": "no-store"})


def local_target(target: str) -> str:
    """`target` if it is a path of this site, else "/": nobody is sent elsewhere from here."""
    fits = target.startswith("/") and not target.startswith(("//", "/\\", "/login"))
    return target if fits and target.isprintable() and "\\" not in target else "/"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("monitor.api", "templates"), autoescape=True, undefined=StrictUndefined
    )
