"""`inferwatch silences`: what keeps notifications quiet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from monitor.clock import SystemClock
from monitor.commands import completion
from monitor.commands.common import SinceOption, Source, group, newer
from monitor.commands.shapes import Actor, Engine, Rows, acts, answers, prints
from monitor.errors import InferwatchError
from monitor.output import Row, cell
from monitor.silences import Wanted, again_words, never_ends, wanted
from storage.names import SILENCE_FIELDS

silences_app = group("Keep notifications quiet for a while.")
COLUMNS = ("silence_id", "starts_at", "ends_at", "only", "matchers", "created_by", "comment")


def _said(row: Row) -> Row:
    """A silence as a line of the table: without the end of what has none, its windows in words."""
    ends_at = None if never_ends(row["ends_at"]) else row["ends_at"]
    return {**row, "ends_at": ends_at, "only": again_words(row["recurrence"])}


@silences_app.command("list")
@prints(COLUMNS, "no silences", _said)
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


def _when(
    length: str | None, start: str | None, until: str | None, every: str | None, at: str | None,
    zone: str | None, **_: Any,
) -> Wanted:  # fmt: skip
    """When a silence is to hold, from the options; a usage error where they make no sense."""
    again = None
    if every is not None:
        if at is None:
            raise typer.BadParameter("say --at when its windows start, such as 22:00", param_hint="--every")
        days = [] if every == "day" else [day.strip() for day in every.split(",")]
        again = {"days": days, "start": at, "duration": length or "2h", "time_zone": zone}
    elif at is not None or zone is not None:
        raise typer.BadParameter("they need --every, the days on which it comes back", param_hint="--at")
    if again is None and length is not None and until is not None:
        raise typer.BadParameter("give one of them", param_hint="--for, --until")
    span = length or "2h" if again is None and until is None else None
    try:
        return wanted(SystemClock().now_ms(), starts_at=start, ends_at=until, length=span, again=again)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from None


@silences_app.command("add")
@answers(_when)
def add_silence(
    engine: Engine,
    person: Actor,
    when: Wanted,
    matchers: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=VALUE...",
            help="series, model, endpoint, tenant, ... = exact value",
            callback=_matching,
            autocompletion=completion.matchers,
        ),
    ],
    length: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="how long, each time if it comes back; default: 2h"),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", metavar="TIME", help="event time; default: now")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="event time; default with --every: for good")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="DAYS", help="comes back: day, or days such as tue,thu"),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="HH:MM", help="local time at which it comes back")
    ] = None,
    zone: Annotated[
        str | None, typer.Option("--time-zone", metavar="NAME", help="of --at; default: UTC")
    ] = None,
) -> tuple[dict[str, Any], str]:
    """Keep notifications of matching alerts quiet; incidents are recorded all the same."""
    from storage import queries
    from storage.people import People

    made = People(engine).silence(
        dict(parse_matcher(text) for text in matchers),
        starts_at_ms=when.starts_at_ms,
        ends_at_ms=when.ends_at_ms,
        by=person.name,
        now_ms=person.now_ms,
        comment=person.reason,
        recurrence=when.recurrence,
    )
    (row,) = queries.silences(engine, silence_id=made.silence_id)
    return row, f"{made.silence_id} {_span_words(_said(row))}"


def _span_words(row: Row) -> str:
    until = f"until {cell(row['ends_at'])}" if row["ends_at"] is not None else "for good"
    return until if row["only"] is None else f"{row['only']}, {until}"


def parse_matcher(text: str) -> tuple[str, str]:
    """`model=chat-large` -> ("model", "chat-large"); anything else is a usage error."""
    name, equals, value = text.partition("=")
    if not equals or not value or name not in SILENCE_FIELDS:
        raise typer.BadParameter(f"{text!r}: write FIELD=VALUE with a field of {', '.join(SILENCE_FIELDS)}")
    return name, value


@silences_app.command("remove")
@acts
def remove_silence(
    engine: Engine,
    person: Actor,
    silence_id: Annotated[str, typer.Argument(metavar="SILENCE", autocompletion=completion.silences)],
) -> str:
    """End a silence now; it stays in the list."""
    from storage.people import People

    if not People(engine).end_silence(silence_id, person.now_ms, person):
        raise InferwatchError(
            f"no silence {silence_id} that still lasts; `inferwatch silences list` shows them"
        )
    return f"{silence_id} has ended"
