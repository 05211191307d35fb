"""What stands in front of every route: rate, size of the body, and who asks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from monitor.api import access, limits
from monitor.api.login import SESSION_COOKIE, login_page
from monitor.api.problems import problem
from monitor.clock import Clock
from monitor.config import HttpSettings
from storage.tokens import Tokens

OPEN_PATHS = frozenset(("/healthz", "/readyz", "/login", "/style.css", "/favicon.ico"))
OPEN_FOLDER = "/static/"
BURST_S = 5.0


@dataclass(slots=True)
class Guard:
    """ASGI middleware. Sets `request.state.user` (name or None), `may_write` and `may_read`.

    Answers 429, 413, 408, 401, 403 and 503 itself, as problem documents; a browser that may not read gets
    the login form with its 401.
    """

    app: ASGIApp
    tokens: Tokens
    settings: HttpSettings
    clock: Clock
    policy: access.Policy
    buckets: limits.Buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client = scope["client"][0] if scope.get("client") else None
        wait_s = self.buckets.take(limits.client_key(client))
        if wait_s > 0:
            await _too_many(wait_s)(scope, receive, send)
            return
        refusal = await self._identify(scope, headers, client)
        if refusal is None and scope["method"] not in access.SAFE_METHODS:
            try:
                declared = headers.get("content-length")
                body = await limits.read_body(receive, declared, self.settings.max_body_bytes)
                receive = limits.replayed(body, receive)
            except limits.TooLargeError:
                refusal = problem(413, f"a body has at most {self.settings.max_body_bytes} bytes")
            except limits.TooSlowError:
                refusal = problem(408, "the body did not arrive in time")
        await (refusal or self.app)(scope, receive, send)

    async def _identify(self, scope: Scope, headers: Headers, client: str | None) -> Response | None:
        """Put who asks into the scope's state; a Response when the request may not pass."""
        path, method = str(scope["path"]), str(scope["method"])
        state = scope.setdefault("state", {})
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        host = headers.get("host")
        same_origin = access.is_same_origin(headers.get("origin"), headers.get("sec-fetch-site"), host)
        asked = access.Asked(
            method=method,
            loopback_client=access.is_loopback(client),
            loopback_host=access.is_loopback(access.host_name(host)),
            same_origin=same_origin,
            marked=headers.get(access.MARK_HEADER) == "1",
        )
        shown, exist, unreachable = await run_in_threadpool(self._look_up, headers)
        if unreachable and not is_open and shown.kind != "none":
            return problem(503, "the database does not answer; try again")
        verdict = access.decide(self.policy, asked, shown, exist)
        if verdict.status == 200 and verdict.user is not None and shown.kind == "token":
            wait_s = self.buckets.take(f"token {verdict.user}")
            if wait_s > 0:
                return _too_many(wait_s)
        state["user"], state["may_write"] = verdict.user, verdict.may_write
        state["may_read"] = verdict.status == 200
        if is_open:
            if not asked.safe and not same_origin:
                return problem(403, "the request comes from another origin")
            return None
        if verdict.status == 200:
            return None
        if verdict.status == 401:
            return _unauthorized(verdict.reason, scope, headers)
        return problem(verdict.status, verdict.reason)

    def _look_up(self, headers: Headers) -> tuple[access.Shown, bool, bool]:
        """What the credentials are worth, whether any token exists, whether the database is out of reach."""
        kind, secret = credentials(headers)
        try:
            if kind == "token":
                return access.Shown(kind, self.tokens.check(secret, self.clock.now_ms())), True, False
            if kind == "session":
                found = self.tokens.session(secret, self.clock.now_ms())
                if found is not None:
                    return access.Shown(kind, found), True, False
            return access.Shown("none"), self.tokens.exist(), False
        except (DBAPIError, PoolTimeout):
            return access.Shown(kind), True, True


def credentials(headers: Headers) -> tuple[access.Kind, str]:
    """The kind of credentials and the secret; a bearer token before a cookie."""
    given = headers.getlist("authorization")
    if given:
        scheme, _, secret = given[0].partition(" ")
        known = len(given) == 1 and scheme.lower() == "bearer"
        return "token", secret.strip() if known else ""
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load("; ".join(headers.getlist("cookie")))
    except CookieError:
        return "none", ""
    morsel = jar.get(SESSION_COOKIE)
    return ("session", morsel.value) if morsel is not None and morsel.value else ("none", "")


def _unauthorized(reason: str, scope: Scope, headers: Headers) -> Response:
    path = str(scope["path"])
    page = scope["method"] == "GET" and not path.startswith("/api/") and path != "/metrics"
    if page and "text/html" in headers.get("accept", ""):
        query = scope.get("query_string", b"").decode("latin-1")
        answer: Response = login_page(f"{path}?{query}" if query else path, status=401)
    else:
        answer = problem(401, reason)
    answer.headers["www-authenticate"] = 'Bearer realm="inferwatch"'
    return answer


def _too_many(wait_s: float) -> Response:
    answer = problem(429, "too many requests; wait a little")
    answer.headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    return answer
