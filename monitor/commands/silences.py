"""`inferwatch silences`: what keeps notifications quiet."""

from __future__ import annotations

from typing import Annotated

import typer

from monitor.clock import SystemClock, rfc3339
from monitor.commands.common import (
    ByOption,
    CommentOption,
    ConfigOption,
    DatabaseOption,
    JsonOption,
    SinceOption,
    Source,
    group,
    newer,
    reading,
    who,
)
from monitor.commands.shapes import Actor, Engine, Rows, acts, prints
from monitor.errors import InferwatchError
from monitor.output import parse_duration_ms, parse_time, print_json, say
from storage.names import SILENCE_FIELDS

silences_app = group("Keep notifications quiet for a while.")


@silences_app.command("list")
@prints(("silence_id", "starts_at", "ends_at", "matchers", "created_by", "comment"), empty="no silences")
def list_silences(source: Source, since: SinceOption = None) -> Rows:
    """Silences, the newest first; with --since those that had not ended by then."""
    from storage import queries

    return newer(queries.silences(source), "ends_at", since)


@silences_app.command("add")
def add_silence(
    matchers: Annotated[
        list[str],
        typer.Argument(metavar="FIELD=VALUE...", help="series, model, endpoint, tenant, ... = exact value"),
    ],
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="how long, such as 2h")] = "2h",
    start: Annotated[
        str | None, typer.Option("--start", metavar="TIME", help="event time; default: now")
    ] = None,
    by: ByOption = None,
    comment: CommentOption = "",
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep notifications of matching alerts quiet; incidents are recorded all the same."""
    from storage.people import People

    wanted = dict(parse_matcher(text) for text in matchers)
    now_ms = SystemClock().now_ms()
    try:
        starts_at_ms = now_ms if start is None else parse_time(start, now_ms)
        ends_at_ms = starts_at_ms + parse_duration_ms(length)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if ends_at_ms <= starts_at_ms:
        raise typer.BadParameter("must be longer than nothing", param_hint="--for")
    with reading(config, database) as engine:
        silence = People(engine).silence(
            wanted,
            starts_at_ms=starts_at_ms,
            ends_at_ms=ends_at_ms,
            by=who(by),
            now_ms=now_ms,
            comment=comment,
        )
    if as_json:
        print_json({"silence_id": silence.silence_id, "matchers": wanted, "ends_at": rfc3339(ends_at_ms)})
    else:
        say(f"{silence.silence_id} until {rfc3339(ends_at_ms)}")


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
