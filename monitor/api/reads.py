"""Routes that read: lists with filters and pages, and single things."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Engine
from starlette.exceptions import HTTPException

from monitor import what_if
from monitor.api import replies, web
from monitor.api.answers import NO_NUL, Cursor, Limit, Since, Text, answer, page, since_ms
from monitor.api.described import many, one, refusals
from monitor.api.partitions import Health, with_lag
from monitor.clock import Clock
from monitor.config import DetectionSettings
from monitor.errors import InferwatchError
from monitor.output import parse_time
from monitor.similar import MOST, similar_to
from storage import history, queries
from storage.names import WARM_UP_WINDOWS
from storage.rollups import hours

HOUR_MS = 3_600_000
SeriesName = Annotated[str, Query(max_length=512, pattern=NO_NUL, examples=["chat-large/assistant"])]
Id = Annotated[str, Path(max_length=200)]
Budget = Annotated[float, Field(gt=0, le=100)]
Back = Annotated[str, Query(max_length=64, description="7d counts back from the newest window")]


def router(engine: Engine, health: Health, clock: Clock, detection: DetectionSettings) -> APIRouter:
    api = APIRouter(prefix="/api/v1", tags=["data"])
    _incidents(api, engine, clock)
    _alerts(api, engine, clock)
    _deployments(api, engine, clock)
    _series(api, engine, clock)
    _windows(api, engine, clock)
    _deliveries(api, engine, clock)
    _models(api, engine)
    _what_if(api, engine, detection, clock)
    _silences(api, engine, clock)
    _sources(api, engine, health, clock)
    _actions(api, engine, clock)
    return api


def _incidents(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get("/incidents", summary="Incidents, newest first", responses=many(replies.Incident))
    def incidents(
        request: Request,
        status: Literal["open", "acknowledged", "resolved"] | None = None,
        severity: Literal["warning", "major", "critical"] | None = None,
        series: Text = None,
        model: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """`since`: whatever was still going on then. `series` and `model`: of one of its alerts."""
        filters = {"status": status, "severity": severity, "series": series, "model": model}
        from_ms = since_ms(since, clock)
        return page(
            *(request, "incidents", cursor, limit),
            lambda after, n: queries.incidents(engine, **filters, since_ms=from_ms, limit=n, after=after),
        )

    @api.get(
        "/incidents/{incident_id}",
        summary="One incident with its alerts, events, deliveries, notes and deployments",
        responses=one(replies.IncidentDetail),
    )
    def incident(request: Request, incident_id: Id) -> Response:
        """By its id, or by the beginning of its id where only one has it."""
        return answer(request, web.one_incident(engine, incident_id))

    @api.get(
        "/incidents/{incident_id}/similar",
        summary="Earlier incidents like this one, the most alike first",
        responses={**many(replies.Similar), **refusals(404)},
    )
    def similar_incidents(
        request: Request, incident_id: Id, limit: Annotated[int, Query(ge=1, le=100)] = MOST
    ) -> Response:
        wanted = web.incident_id_of(engine, incident_id)
        return answer(request, similar_to(engine, wanted, limit))


def _alerts(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get("/alerts", summary="Alerts, newest first", responses=many(replies.Alert))
    def alerts(
        request: Request,
        series: Text = None,
        model: Text = None,
        status: Literal["firing", "resolved", "withdrawn"] | None = None,
        incident_id: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        filters = {"series": series, "model": model, "status": status, "incident_id": incident_id}
        from_ms = since_ms(since, clock)
        return page(
            *(request, "alerts", cursor, limit),
            lambda after, n: queries.alerts(engine, **filters, since_ms=from_ms, limit=n, after=after),
        )

    @api.get("/alerts/{alert_id}", summary="One alert with its steps", responses=one(replies.AlertDetail))
    def alert(request: Request, alert_id: Id) -> Response:
        """What it said when it fired, was updated, resolved or withdrawn."""
        found = None if "\0" in alert_id else history.alert(engine, alert_id)
        if found is None:
            raise HTTPException(404, "no such alert")
        return answer(request, found)


def _deployments(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get(
        "/deployments",
        summary="New model versions seen in the log, newest first",
        responses=many(replies.Deployment),
    )
    def deployments(
        request: Request,
        series: Text = None,
        verdict: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """`at` is the start of the first window with the version; a series' first version is none."""
        from_ms = since_ms(since, clock)
        return page(
            *(request, "deployments", cursor, limit),
            lambda after, n: queries.deployments(
                engine, series=series, since_ms=from_ms, verdict=verdict, limit=n, after=after
            ),
        )


def _series(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get("/series", summary="Series with their newest score", responses=many(replies.Series))
    def series(
        request: Request,
        model: Text = None,
        contains: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """`since`: with a record since then. `contains`: part of the name, in any case."""
        from_ms = since_ms(since, clock)
        return page(
            *(request, "series", cursor, limit),
            lambda after, n: queries.series(
                engine, contains=contains, model=model, since_ms=from_ms, limit=n, after=after
            ),
        )

    @api.get(
        "/series/{name:path}",
        summary="One series: warm-up, newest score, open incidents, deployments",
        responses=one(replies.SeriesDetail),
    )
    def one_series(
        request: Request, name: Annotated[str, Path(max_length=512, examples=["chat-large/assistant"])]
    ) -> Response:
        found = series_summary(engine, name)
        if found is None:
            raise HTTPException(404, "no such series")
        return answer(request, found)


def _windows(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get(
        "/windows",
        summary="Windows of one series, oldest first; the first page holds the newest",
        responses=many(replies.Window),
    )
    def windows(
        request: Request,
        series: SeriesName,
        since: Since = None,
        until: Since = None,
        limit: Limit = 1_000,
        cursor: Cursor = None,
    ) -> Response:
        """The next page holds the windows before these."""
        from_ms, to_ms = since_ms(since, clock), since_ms(until, clock)
        return page(
            *(request, "windows", cursor, limit),
            lambda after, n: queries.windows(
                engine, series, since_ms=from_ms, until_ms=to_ms, limit=n, after=after
            ),
        )

    @api.get(
        "/hours",
        summary="Hours of one series, oldest first; the first page holds the newest",
        responses=many(replies.Hour),
    )
    def hourly(
        request: Request,
        series: SeriesName,
        since: Since = None,
        until: Since = None,
        limit: Limit = 1_000,
        cursor: Cursor = None,
    ) -> Response:
        """Windows summed up per hour; they are kept much longer than the windows."""
        from_ms, to_ms = since_ms(since, clock), since_ms(until, clock)
        return page(
            *(request, "hours", cursor, limit),
            lambda after, n: hours(engine, series, since_ms=from_ms, until_ms=to_ms, limit=n, after=after),
        )

    @api.get(
        "/revisions",
        summary="What a window said before late records amended it, oldest first",
        responses=many(replies.Revision),
    )
    def revisions(
        request: Request,
        series: SeriesName,
        window_start: Annotated[str, Query(max_length=64, examples=["2026-01-31T12:00:00Z"])],
    ) -> Response:
        try:
            start_ms = parse_time(window_start, clock.now_ms())
        except (ValueError, OverflowError) as error:
            raise HTTPException(422, f"window_start: {error}") from None
        return answer(request, queries.window_revisions(engine, series, start_ms))


def series_summary(engine: Engine, name: str) -> dict[str, Any] | None:
    """A row of `queries.series` with `learning`, `open_incidents` and `deployments`; None if unknown."""
    found = [] if "\0" in name else queries.series(engine, name=name, limit=1)
    if not found:
        return None
    incidents = queries.incidents(engine, series=name, limit=100)
    return {
        **found[0],
        "learning": found[0]["windows"] < WARM_UP_WINDOWS,
        "warm_up_windows": WARM_UP_WINDOWS,
        "open_incidents": [row for row in incidents if row["status"] != "resolved"],
        "deployments": queries.deployments(engine, series=name, limit=10),
    }


def _deliveries(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get(
        "/deliveries",
        summary="Notifications and what became of them, newest first",
        responses=many(replies.Delivery),
    )
    def deliveries(
        request: Request,
        status: Literal["pending", "claimed", "delivered", "dead"] | None = None,
        channel: Text = None,
        incident_id: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        filters = {"status": status, "channel": channel, "incident_id": incident_id}
        from_ms = since_ms(since, clock)
        return page(
            *(request, "deliveries", cursor, limit),
            lambda after, n: queries.deliveries(engine, **filters, since_ms=from_ms, limit=n, after=after),
        )


def _models(api: APIRouter, engine: Engine) -> None:
    @api.get("/models", summary="Model versions, newest first", responses=many(replies.Model))
    def models(
        request: Request,
        status: Literal["champion", "challenger", "refused", "retired"] | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Empty until the first training: then the model that ships with the package is in force."""
        return page(
            *(request, "models", cursor, limit),
            lambda after, n: queries.models(engine, status=status, limit=n, after=after),
        )

    @api.get("/models/{version}", summary="One model version", responses=one(replies.Model))
    def model(request: Request, version: Id) -> Response:
        found = [] if "\0" in version else queries.models(engine, version=version)
        if not found:
            raise HTTPException(404, "no such model version")
        return answer(request, found[0])


def _what_if(api: APIRouter, engine: Engine, detection: DetectionSettings, clock: Clock) -> None:
    @api.get(
        "/what-if",
        summary="What other false-alarm budgets would have found, from stored scores",
        responses={**one(replies.WhatIf), **refusals(409)},
    )
    def asked(
        request: Request,
        budget: Annotated[list[Budget], Query(min_length=1, max_length=10, examples=[[0.5, 4.0]])],
        since: Back = "7d",
        series: Text = None,
    ) -> Response:
        """False alarms per series and week; the budget in force comes first, equal ones once."""
        if series is not None and not queries.series(engine, name=series, limit=1):
            raise HTTPException(404, "no such series")
        try:
            found = what_if.ask(engine, detection, budget, since=since, series=series, now_ms=clock.now_ms())
        except (ValueError, OverflowError) as error:
            raise HTTPException(422, f"since: {error}") from None
        except InferwatchError as error:
            raise HTTPException(409, str(error)) from None
        return answer(request, found.as_json())


def _silences(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get("/silences", summary="Silences, the newest first", responses=many(replies.Silence))
    def silences(
        request: Request,
        current: Annotated[bool, Query(description="only those that have not ended by now")] = False,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        until_ms = clock.now_ms() if current else None
        return page(
            *(request, "silences", cursor, limit),
            lambda after, n: queries.silences(engine, until_ms=until_ms, limit=n, after=after),
        )


def _sources(api: APIRouter, engine: Engine, health: Health, clock: Clock) -> None:
    @api.get("/sources", summary="Partitions of the log, how far each is", responses=many(replies.Source))
    def sources(request: Request) -> Response:
        return answer(request, with_lag(queries.sources(engine), health))

    @api.get("/rejected", summary="Rejected records, newest first", responses=many(replies.Rejected))
    def rejected(
        request: Request, reason: Text = None, since: Since = None, limit: Limit = 100, cursor: Cursor = None
    ) -> Response:
        from_ms = since_ms(since, clock)
        return page(
            *(request, "rejected", cursor, limit),
            lambda after, n: queries.rejected(engine, reason=reason, since_ms=from_ms, limit=n, after=after),
            hidden=("id",),
        )


def _actions(api: APIRouter, engine: Engine, clock: Clock) -> None:
    @api.get(
        "/actions",
        summary="What people did to silences, models, deliveries and tokens, newest first",
        responses=many(replies.ActionReply),
    )
    def actions(request: Request, since: Since = None, limit: Limit = 100, cursor: Cursor = None) -> Response:
        from_ms = since_ms(since, clock)
        return page(
            *(request, "actions", cursor, limit),
            lambda after, n: history.actions(engine, since_ms=from_ms, limit=n, after=after),
            hidden=("id",),
        )
