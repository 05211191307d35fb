"""What a shell offers behind TAB: names of what is in the database or the configuration.

It is asked while somebody types: whatever goes wrong, nothing is offered and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import typer

from monitor.commands.common import Source, load_settings, looking
from monitor.output import clean
from storage.names import SILENCE_FIELDS

Offer = tuple[str, str]
"""A word, and what a shell that can show more says of it."""
Completer = Callable[[typer.Context, str], list[Offer]]
MAX_OFFERED = 500


def among(*words: str) -> Callable[[str], list[str]]:
    """One of a few words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _from_database(read: Callable[[Source, str], Iterable[Offer]]) -> Completer:
    def complete(ctx: typer.Context, incomplete: str) -> list[Offer]:
        with suppress(Exception), looking(_path(ctx), ctx.params.get("database")) as source:
            return _printable(read(source, incomplete), incomplete)
        return []

    return complete


def _path(ctx: typer.Context) -> Path | None:
    config = ctx.params.get("config")
    return None if config is None else Path(config)


def _printable(offers: Iterable[Offer], incomplete: str) -> list[Offer]:
    """Names come from the log: one with a control character in it is not put on a prompt."""
    fitting = ((word, clean(said)) for word, said in offers if word.startswith(incomplete))
    return [offer for offer in fitting if clean(offer[0]) == offer[0]][:MAX_OFFERED]


@_from_database
def incidents(source: Source, incomplete: str) -> Iterable[Offer]:
    from storage import queries

    rows = queries.incidents(source, limit=MAX_OFFERED)
    return [(str(row["incident_id"])[:8], f"{row['status']}: {row['title']}") for row in rows]


@_from_database
def series(source: Source, incomplete: str) -> Iterable[Offer]:
    from storage import queries

    rows = queries.series(source, contains=incomplete or None, limit=MAX_OFFERED)
    return [(str(row["series"]), f"{row['windows']} windows") for row in rows]


@_from_database
def models(source: Source, incomplete: str) -> Iterable[Offer]:
    from storage import queries

    return [(str(row["version"]), f"{row['status']}: {row['reason']}") for row in queries.models(source)]


@_from_database
def silences(source: Source, incomplete: str) -> Iterable[Offer]:
    from monitor.clock import SystemClock
    from storage import queries

    rows = queries.silences(source, until_ms=SystemClock().now_ms())
    return [(str(row["silence_id"]), str(row["comment"])) for row in rows]


@_from_database
def failed_deliveries(source: Source, incomplete: str) -> Iterable[Offer]:
    from storage import queries

    rows = queries.deliveries(source, status="dead", limit=MAX_OFFERED)
    return [(str(row["delivery_id"]), f"{row['event']} to {row['channel']}") for row in rows]


@_from_database
def _matched(source: Source, incomplete: str) -> Iterable[Offer]:
    from storage import queries

    field, _, begun = incomplete.partition("=")
    rows = queries.series(source, contains=begun or None, limit=10_000)
    names = dict.fromkeys(str(row[field]) for row in rows if row.get(field))
    return [(f"{field}={name}", "") for name in names]


def matchers(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """FIELD=, and behind it what the series of the log have there."""
    if "=" in incomplete:
        return _matched(ctx, incomplete)
    return [(f"{field}=", "exact value") for field in SILENCE_FIELDS if field.startswith(incomplete)]


def channels(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Channels of the configuration."""
    with suppress(Exception):
        found = load_settings(_path(ctx), None).channels
        return _printable(((name, found[name].type) for name in sorted(found)), incomplete)
    return []
