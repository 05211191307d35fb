"""Routes that change something. Each answers the resource as it is afterwards.

Who may come here is decided before (monitor.api.guard); each change leaves an event with who, when and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Engine
from starlette.exceptions import HTTPException

from monitor.api import bodies
from monitor.api.described import INCIDENT, MODEL, found, refusals
from monitor.api.replies import Delivery, Silence
from monitor.api.web import incident_id_of
from monitor.clock import Clock
from monitor.config import Settings
from monitor.output import plain
from monitor.people import people
from monitor.silences import Wanted, wanted
from storage import queries
from storage.actions import Actor
from storage.models import ModelRegistry
from storage.outbox import Outbox
from storage.people import People

Id = Annotated[str, Path(max_length=200)]


def router(engine: Engine, settings: Settings, clock: Clock, on_change: Callable[[], None]) -> APIRouter:
    """`on_change` is called after a change that may have put something into the outbox."""
    api = APIRouter(prefix="/api/v1", tags=["changes"])
    _incidents(api, engine, people(engine, settings), clock, on_change)
    _silences(api, engine, People(engine), clock)
    _models(api, engine, clock)
    _deliveries(api, engine, clock, on_change)
    return api


def actor_of(request: Request, clock: Clock, by: str | None, reason: str = "") -> Actor:
    """The person whom a body names, or else the user of the token; who merely is named says via whom."""
    user = str(request.state.user)
    return Actor(by or user, clock.now_ms(), reason, user if by and by != user else None)


def _incidents(
    api: APIRouter, engine: Engine, actions: People, clock: Clock, on_change: Callable[[], None]
) -> None:
    def changed(incident_id: str) -> JSONResponse:
        on_change()
        return JSONResponse(plain(queries.incident(engine, incident_id)))

    def remarked(
        act: Callable[..., object], incident_id: str, request: Request, body: bodies.Remark | None
    ) -> JSONResponse:
        said = body or bodies.Remark()
        wanted, who = incident_id_of(engine, incident_id), actor_of(request, clock, said.by)
        act(wanted, by=who.name, now_ms=who.now_ms, reason=said.comment, via=who.via)
        return changed(wanted)

    @api.post("/incidents/{incident_id}/acknowledge", summary="Somebody looks after it", responses=INCIDENT)
    def acknowledge(incident_id: Id, request: Request, body: bodies.Remark | None = None) -> JSONResponse:
        return remarked(actions.acknowledge, incident_id, request, body)

    @api.post("/incidents/{incident_id}/resolve", summary="It is over", responses=INCIDENT)
    def resolve(incident_id: Id, request: Request, body: bodies.Remark | None = None) -> JSONResponse:
        return remarked(actions.resolve, incident_id, request, body)

    @api.post("/incidents/{incident_id}/reopen", summary="It is not over after all", responses=INCIDENT)
    def reopen(incident_id: Id, request: Request, body: bodies.Remark | None = None) -> JSONResponse:
        return remarked(actions.reopen, incident_id, request, body)

    @api.post("/incidents/{incident_id}/label", summary="Say what it was", responses=INCIDENT)
    def label(incident_id: Id, request: Request, body: bodies.Label) -> JSONResponse:
        wanted, who = incident_id_of(engine, incident_id), actor_of(request, clock, body.by)
        actions.label(wanted, body.label, by=who.name, now_ms=who.now_ms, comment=body.comment, via=who.via)
        return changed(wanted)

    @api.post("/incidents/{incident_id}/notes", summary="Write down what you know", responses=INCIDENT)
    def note(incident_id: Id, request: Request, body: bodies.Note) -> JSONResponse:
        wanted, who = incident_id_of(engine, incident_id), actor_of(request, clock, body.by)
        actions.note(wanted, body.text, by=who.name, now_ms=who.now_ms, via=who.via)
        return changed(wanted)


def _silences(api: APIRouter, engine: Engine, actions: People, clock: Clock) -> None:
    @api.post("/silences", summary="Keep notifications quiet", status_code=201, responses=found(Silence, 201))
    def silence(request: Request, body: bodies.Silence) -> JSONResponse:
        who = actor_of(request, clock, body.by, body.comment)
        when = wanted_silence(body, who.now_ms)
        made = actions.silence(
            {str(name): value for name, value in body.matchers.items()},
            starts_at_ms=when.starts_at_ms,
            ends_at_ms=when.ends_at_ms,
            by=who.name,
            now_ms=who.now_ms,
            comment=body.comment,
            recurrence=when.recurrence,
            via=who.via,
        )
        return JSONResponse(plain(silence_row(engine, made.silence_id)), 201)

    @api.delete("/silences/{silence_id}", summary="End a silence now", responses=found(Silence))
    def end(silence_id: Id, request: Request) -> JSONResponse:
        who = actor_of(request, clock, None)
        if _without_nul(silence_id) is None or silence_row(engine, silence_id) is None:
            raise HTTPException(404, "no such silence")
        actions.end_silence(silence_id, who.now_ms, who)
        return JSONResponse(plain(silence_row(engine, silence_id)))


def _models(api: APIRouter, engine: Engine, clock: Clock) -> None:
    registry = ModelRegistry(engine)

    @api.post("/models/rollback", summary="Take the champion back", responses={**MODEL, **refusals(409)})
    def rollback(request: Request, body: bodies.Remark | None = None) -> JSONResponse:
        """Answers the version in force now; `version` is null for the model that ships with the package."""
        said = body or bodies.Remark()
        if not queries.models(engine, status="champion"):
            raise HTTPException(
                409, "the model that ships with the package is in force; nothing to take back"
            )
        registry.rollback(actor_of(request, clock, said.by, said.comment))
        return JSONResponse(plain([*queries.models(engine, status="champion"), PRIOR][0]))

    @api.post("/models/{version}/promote", summary="Put a stored version in force", responses=MODEL)
    def promote(version: Id, request: Request, body: bodies.Remark | None = None) -> JSONResponse:
        said = body or bodies.Remark()
        who = actor_of(request, clock, said.by, said.comment)
        if _without_nul(version) is None or not registry.promote(version, who):
            raise HTTPException(404, "no such model version")
        return JSONResponse(plain(queries.models(engine, version=version)[0]))


def _deliveries(api: APIRouter, engine: Engine, clock: Clock, on_change: Callable[[], None]) -> None:
    outbox = Outbox(engine)

    @api.post(
        "/deliveries/{delivery_id}/retry",
        summary="Send a notification that was given up once more",
        responses={**found(Delivery), **refusals(409)},
    )
    def retry(delivery_id: Id, request: Request, body: bodies.Remark | None = None) -> JSONResponse:
        said = body or bodies.Remark()
        who = actor_of(request, clock, said.by, said.comment)
        row = None if _without_nul(delivery_id) is None else queries.delivery(engine, delivery_id)
        if row is None:
            raise HTTPException(404, "no such notification")
        if not outbox.retry(delivery_id, who.now_ms, who):
            raise HTTPException(409, f"the notification is {row['status']}; only a dead one is sent again")
        on_change()
        return JSONResponse(plain(queries.delivery(engine, delivery_id)))


PRIOR: dict[str, Any] = {
    "version": None,
    "detector": "ensemble",
    "trained_at": None,
    "status": "champion",
    "metrics": {},
    "sha256": None,
    "reason": "the model that ships with the package",
    "promotion": None,
    "drift": None,
}


def wanted_silence(body: bodies.Silence, now_ms: int) -> Wanted:
    """When it is to hold; a 422 problem when that makes no sense."""
    again = None if body.recurrence is None else body.recurrence.model_dump()
    try:
        return wanted(now_ms, starts_at=body.starts_at, ends_at=body.ends_at, length=body.length, again=again)
    except (ValueError, OverflowError) as error:
        raise HTTPException(422, str(error)) from None


def silence_row(engine: Engine, silence_id: str) -> dict[str, Any] | None:
    return next(iter(queries.silences(engine, silence_id=silence_id)), None)


def _without_nul(text: str) -> str | None:
    """None for a text that PostgreSQL would refuse, which therefore names nothing."""
    return None if "\0" in text else text
