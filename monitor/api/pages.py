"""The pages: HTML made here, made live by scripts of our own. They are no part of the API's description."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from monitor.api.dashboard import budget as budgets
from monitor.api.dashboard import incidents, lists
from monitor.api.dashboard.context import base, paging
from monitor.api.dashboard.render import environment, static_file
from monitor.api.partitions import Health, with_lag
from monitor.api.web import one_incident
from monitor.clock import Clock, SystemClock
from monitor.config import DetectionSettings
from storage import queries

NO_NUL = r"^[^\x00]*$"  # PostgreSQL refuses it in any text
PageNumber = Annotated[int, Query(ge=1, le=100_000)]
Text = Annotated[str, Query(max_length=512, pattern=NO_NUL)]
State = Literal["", "active", "open", "acknowledged", "resolved"]
Severity = Literal["", "critical", "major", "warning"]
SeriesState = Literal["", "learning", "unusual", "gone"]
Reach = Literal["3h", "24h", "7d", "90d", "1y"]
BudgetReach = Literal["1d", "7d", "30d"]
Budget = Annotated[float | None, Query(gt=0, le=100)]
DeliveryState = Literal["", "pending", "claimed", "delivered", "dead"]
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Site:
    """What every page is made from; the database is read at each request."""

    engine: Engine
    clock: Clock
    templates: Environment

    def base(self, request: Request) -> dict[str, Any]:
        return base(request, self.engine, self.clock)

    def missing(self, request: Request, what: str, *, stored: bool = True) -> HTMLResponse:
        """A 404: a page for a browser, a problem document (raised) for everybody else."""
        if not wants_page(request):
            raise HTTPException(404, what)
        said = {"what": what, "stored": stored}
        text = self.templates.get_template("missing.html").render(self.base(request) | said)
        return HTMLResponse(text, 404, headers={"cache-control": "no-store"})

    def show(self, template: str, context: dict[str, Any]) -> HTMLResponse:
        text = self.templates.get_template(template).render(context)
        return HTMLResponse(text, headers={"cache-control": "no-store"})


def wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def missing_pages(app: FastAPI, engine: Engine, clock: Clock) -> None:
    """A browser that asks for an address that there is not gets a page, with the way back."""
    site, otherwise = Site(engine, clock, environment()), app.router.default

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["path"].startswith("/api/"):
            request = Request(scope)
            if wants_page(request):
                answer = partial(site.missing, request, "no page of this address", stored=False)
                await (await run_in_threadpool(answer))(scope, receive, send)
                return
        await otherwise(scope, receive, send)

    app.router.default = not_found


def router(
    engine: Engine,
    clock: Clock | None = None,
    *,
    detection: DetectionSettings | None = None,
    health: Health = dict,
) -> APIRouter:
    """Routes of the pages and of what they load; `health` as for `create_app`."""
    pages = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    site = Site(engine, clock or SystemClock(), environment())
    _static(pages)
    _incidents(pages, site)
    _series(pages, site)
    _operations(pages, site, health)
    _budget(pages, site, detection or DetectionSettings())
    return pages


def _static(pages: APIRouter) -> None:
    @pages.get("/static/{name:path}")
    def static(name: str, v: str = "") -> Response:
        found = static_file(name)
        if found is None:
            raise HTTPException(404, "no such file")
        caching = FOREVER if v else "no-cache"
        return Response(found[0], media_type=found[1], headers={"cache-control": caching})

    @pages.get("/style.css")
    def stylesheet() -> Response:
        return static("style.css")

    @pages.get("/favicon.ico")
    def icon() -> Response:
        """Browsers ask for it where an answer names no icon of its own, such as JSON."""
        return static("icon.svg")


def _incidents(pages: APIRouter, site: Site) -> None:
    @pages.get("/")
    def index(
        request: Request, state: State = "", severity: Severity = "", q: Text = "", page: PageNumber = 1
    ) -> Response:
        context = site.base(request)
        found, total = incidents.index(
            site.engine, state=state, severity=severity, text=q, page=page, now_ms=context["now_ms"]
        )
        numbers = paging(request, page=page, size=incidents.PAGE_SIZE, total=total)
        return site.show("index.html", context | found | {"paging": numbers})

    @pages.get("/incidents/{incident_id}")
    def incident(request: Request, incident_id: str) -> Response:
        context = site.base(request)
        try:
            found = one_incident(site.engine, incident_id)
        except HTTPException as error:
            return site.missing(request, str(error.detail))
        return site.show("incident.html", context | incidents.one(site.engine, found, context["now_ms"]))


def _series(pages: APIRouter, site: Site) -> None:
    @pages.get("/series")
    def series_list(
        request: Request,
        q: Text = "",
        state: SeriesState = "",
        page: PageNumber = 1,
        name: Text | None = None,
        reach: Reach = "24h",
    ) -> Response:
        if name is not None:  # a name that a path cannot carry
            return one_series(request, name, reach)
        found, total = lists.series_list(site.engine, text=q, state=state, page=page)
        numbers = paging(request, page=page, size=lists.SERIES_SIZE, total=total)
        return site.show("series_list.html", site.base(request) | found | {"paging": numbers})

    @pages.get("/series/{name:path}")
    def one_series(request: Request, name: str, reach: Reach = "24h") -> Response:
        found = [] if "\0" in name else queries.series(site.engine, name=name, limit=1)
        if not found:
            return site.missing(request, "no series of this name")
        return site.show(
            "series.html", site.base(request) | lists.one_series(site.engine, found[0], reach=reach)
        )


def _budget(pages: APIRouter, site: Site, detection: DetectionSettings) -> None:
    @pages.get("/budget")
    def budget(
        request: Request, other: Budget = None, reach: BudgetReach = "7d", series: Text = ""
    ) -> Response:
        found = budgets.budget(site.engine, detection, other=other, reach=reach, series=series)
        return site.show("budget.html", site.base(request) | found)


def _operations(pages: APIRouter, site: Site, health: Health) -> None:
    @pages.get("/models")
    def models(request: Request) -> Response:
        return site.show("models.html", site.base(request) | lists.models(site.engine))

    @pages.get("/sources")
    def sources(request: Request) -> Response:
        context = site.base(request)
        partitions = with_lag(context["sources"], health)
        found = lists.sources(site.engine, partitions, wall_ms=context["wall_ms"])
        return site.show("sources.html", context | found)

    @pages.get("/silences")
    def silences(request: Request) -> Response:
        context = site.base(request)
        return site.show("silences.html", context | lists.silences(site.engine, now_ms=context["now_ms"]))

    @pages.get("/deliveries")
    def deliveries(
        request: Request, status: DeliveryState = "", q: Text = "", page: PageNumber = 1
    ) -> Response:
        found, total = lists.deliveries(site.engine, status=status, text=q, page=page)
        numbers = paging(request, page=page, size=lists.DELIVERY_SIZE, total=total)
        return site.show("deliveries.html", site.base(request) | found | {"paging": numbers})
