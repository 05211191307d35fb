"""`inferwatch silences`: what keeps notifications quiet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from monitor.clock import rfc3339
from monitor.commands.common import SinceOption, Source, group, newer, since_ms
from monitor.commands.shapes import Actor, Engine, Rows, acts, answers, prints
from monitor.errors import InferwatchError
from monitor.output import parse_duration_ms
from storage.names import SILENCE_FIELDS

silences_app = group("Keep notifications quiet for a while.")


@silences_app.command("list")
@prints(("silence_id", "starts_at", "ends_at", "matchers", "created_by", "comment"), empty="no silences")
def list_silences(source: Source, since: SinceOption = None) -> Rows:
    """Silences, the newest first; with --since those that had not ended by then."""
    from storage import queries

    return newer(queries.silences(source), "ends_at", since)


def _matching(texts: list[str]) -> list[str]:
    names = [parse_matcher(text)[0] for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name} is given twice, and all must hold; add a silence for each")
    return texts


def _length_ms(text: str) -> int:
    """How long, ms; a usage error for no time or none at all."""
    try:
        length_ms = parse_duration_ms(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if length_ms <= 0:
        raise typer.BadParameter("must be longer than nothing")
    return length_ms


def _a_length(text: str) -> str:
    _length_ms(text)
    return text


def _a_time(text: str | None) -> str | None:
    since_ms(text, "--start")
    return text


@silences_app.command("add")
@answers
def add_silence(
    engine: Engine,
    person: Actor,
    matchers: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=VALUE...",
            help="series, model, endpoint, tenant, ... = exact value",
            callback=_matching,
        ),
    ],
    length: Annotated[
        str, typer.Option("--for", metavar="TIME", help="how long, such as 2h", callback=_a_length)
    ] = "2h",
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="TIME", help="event time; default: now", callback=_a_time),
    ] = None,
) -> tuple[dict[str, Any], str]:
    """Keep notifications of matching alerts quiet; incidents are recorded all the same."""
    from storage.people import People

    wanted = dict(parse_matcher(text) for text in matchers)
    given_ms = since_ms(start, "--start")
    starts_at_ms = person.now_ms if given_ms is None else given_ms
    ends_at_ms = starts_at_ms + _length_ms(length)
    silence = People(engine).silence(
        wanted,
        starts_at_ms=starts_at_ms,
        ends_at_ms=ends_at_ms,
        by=person.name,
        now_ms=person.now_ms,
        comment=person.reason,
    )
    shown = {"silence_id": silence.silence_id, "matchers": wanted, "ends_at": rfc3339(ends_at_ms)}
    return shown, f"{silence.silence_id} until {rfc3339(ends_at_ms)}"


def parse_matcher(text: str) -> tuple[str, str]:
    """`model=chat-large` -> ("model", "chat-large"); anything else is a usage error."""
    name, equals, value = text.partition("=")
    if not equals or not value or name not in SILENCE_FIELDS:
        raise typer.BadParameter(f"{text!r}: write FIELD=VALUE with a field of {', '.join(SILENCE_FIELDS)}")
    return name, value


@silences_app.command("remove")
@acts
def remove_silence(
    engine: Engine, person: Actor, silence_id: Annotated[str, typer.Argument(metavar="SILENCE")]
) -> str:
    """End a silence now; it stays in the list."""
    from storage.people import People

    if not People(engine).end_silence(silence_id, person.now_ms, person):
        raise InferwatchError(
            f"no silence {silence_id} that still lasts; `inferwatch silences list` shows them"
        )
    return f"{silence_id} has ended"
