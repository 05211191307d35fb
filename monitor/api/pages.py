"""The pages: plain HTML from templates, no script."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Engine

from monitor.api.web import one_incident
from monitor.output import number, plain
from storage import queries

WARM_UP_WINDOWS = 200
SHOWN_INCIDENTS = 50
SHOWN_SERIES = 100
MAX_SERIES = 10_000


def when(value: Any) -> str:
    """A time for reading: `2026-01-31 12:00:00`."""
    text = plain(value)
    return "-" if text is None else str(text).replace("T", " ").removesuffix("Z")


def figure(value: Any) -> str:
    return "-" if value is None else number(float(value))


def environment() -> Environment:
    """Templates that escape everything and fail on a name that does not exist."""
    env = Environment(
        loader=PackageLoader("monitor.api", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"when": when, "number": figure}
    return env


def router(engine: Engine) -> APIRouter:
    """Routes of the pages; they are no part of the API's description."""
    pages = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    env = environment()
    style = files("monitor.api").joinpath("templates/style.css").read_text(encoding="utf-8")

    @pages.get("/style.css")
    def stylesheet() -> Response:
        return Response(style, media_type="text/css", headers={"cache-control": "max-age=300"})

    @pages.get("/")
    def index() -> str:
        incidents = queries.incidents(engine, status=None, since_ms=None, limit=SHOWN_INCIDENTS)
        series = queries.series(engine, since_ms=None, limit=MAX_SERIES)
        return env.get_template("index.html").render(
            open=[row for row in incidents if row["status"] != "resolved"],
            closed=[row for row in incidents if row["status"] == "resolved"],
            series=series[:SHOWN_SERIES],
            series_count=len(series),
            learning=[row for row in series if row["windows"] < WARM_UP_WINDOWS],
            warm_up=WARM_UP_WINDOWS,
            sources=queries.sources(engine),
        )

    @pages.get("/incidents/{incident_id}")
    def incident(incident_id: str) -> str:
        found = one_incident(engine, incident_id)
        return env.get_template("incident.html").render(
            incident=found, alerts=found["alerts"], events=found["events"], deliveries=found["deliveries"]
        )

    return pages
