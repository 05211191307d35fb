"""Commands that read what was stored: alerts, windows, series, silences, deliveries, models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from monitor.clock import SystemClock, rfc3339
from monitor.commands.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    LimitOption,
    SinceOption,
    group,
    looking,
    reading,
    since_ms,
)
from monitor.errors import InferwatchError
from monitor.output import parse_duration_ms, parse_time, print_json, print_rows, say
from storage.names import SILENCE_FIELDS

silences_app = group("Keep notifications quiet for a while.")
deliveries_app = group("What was sent, and what became of it.")
models_app = group("Trained models.")

WINDOW_COLUMNS = (
    "window_start",
    "request_count",
    "error_rate",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "output_tokens_mean",
    "score",
    "tail_probability",
    "is_anomalous",
    "revision",
)


def alerts(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    series: Annotated[
        str | None, typer.Option("--series", metavar="NAME", help="only of this series")
    ] = None,
    limit: LimitOption = 100,
    as_json: JsonOption = False,
) -> None:
    """Alerts, newest first."""
    from storage import queries

    with looking(config, database) as engine:
        rows = queries.alerts(engine, series=series, since_ms=since_ms(since), limit=limit)
    columns = ("window_start", "window_end", "status", "severity", "score", "series", "summary")
    print_rows(rows, columns, empty="no alerts", as_json=as_json)


def windows(
    series: Annotated[str, typer.Argument(metavar="SERIES", help="a name that `inferwatch series` shows")],
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    limit: LimitOption = 200,
    as_json: JsonOption = False,
) -> None:
    """The newest windows of one series, oldest of them first."""
    from storage import queries

    with looking(config, database) as engine:
        rows = queries.windows(engine, series, since_ms=since_ms(since), limit=limit)
    print_rows(rows, WINDOW_COLUMNS, empty=f"no windows of {series}", as_json=as_json)


def series(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    limit: LimitOption = 1_000,
    as_json: JsonOption = False,
) -> None:
    """Series with their newest window and score."""
    from storage import queries

    with looking(config, database) as engine:
        rows = queries.series(engine, since_ms=since_ms(since), limit=limit)
    columns = ("series", "windows", "last_window_start", "last_score", "last_is_anomalous")
    print_rows(rows, columns, empty="no series yet", as_json=as_json)


def deployments(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    series: Annotated[
        str | None, typer.Option("--series", metavar="NAME", help="only of this series")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="only worse, different, better, alike or unclear ones")
    ] = None,
    limit: LimitOption = 100,
    as_json: JsonOption = False,
) -> None:
    """New model versions, newest first, and how each compares with the one it replaces."""
    from storage import queries

    with looking(config, database) as engine:
        rows = queries.deployments(
            engine, series=series, since_ms=since_ms(since), verdict=verdict, limit=limit
        )
    columns = ("at", "series", "model_version", "previous_version", "verdict", "summary")
    print_rows(rows, columns, empty="no deployments", as_json=as_json)


@silences_app.command("list")
def list_silences(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Silences, the newest first; with --since those that had not ended by then."""
    from storage import queries

    with looking(config, database) as engine:
        rows = newer(queries.silences(engine), "ends_at", since)
    columns = ("silence_id", "starts_at", "ends_at", "matchers", "created_by", "comment")
    print_rows(rows, columns, empty="no silences", as_json=as_json)


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
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="default: the login name")] = None,
    comment: Annotated[str, typer.Option("--comment", metavar="TEXT", help="why")] = "",
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep notifications of matching alerts quiet; incidents are recorded all the same."""
    from monitor.commands.incidents import who
    from storage.people import People

    wanted = dict(parse_matcher(text) for text in matchers)
    now_ms = SystemClock().now_ms()
    try:
        starts_at_ms = now_ms if start is None else parse_time(start, now_ms)
        ends_at_ms = starts_at_ms + parse_duration_ms(length)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
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


def newer(rows: list[dict[str, Any]], column: str, since: str | None) -> list[dict[str, Any]]:
    """Rows whose time in `column` is not before `since`."""
    at_ms = since_ms(since)
    return rows if at_ms is None else [row for row in rows if row[column].timestamp() * 1000 >= at_ms]


def parse_matcher(text: str) -> tuple[str, str]:
    """`model=chat-large` -> ("model", "chat-large"); anything else is a usage error."""
    name, equals, value = text.partition("=")
    if not equals or not value or name not in SILENCE_FIELDS:
        raise typer.BadParameter(f"{text!r}: write FIELD=VALUE with a field of {', '.join(SILENCE_FIELDS)}")
    return name, value


@silences_app.command("remove")
def remove_silence(
    silence_id: Annotated[str, typer.Argument(metavar="SILENCE")],
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """End a silence now; it stays in the list."""
    from storage.people import People

    with reading(config, database) as engine:
        if not People(engine).end_silence(silence_id, SystemClock().now_ms()):
            raise InferwatchError(f"no silence {silence_id} that still lasts")
    say(f"{silence_id} has ended")


@deliveries_app.command("list")
def list_deliveries(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    status: Annotated[str | None, typer.Option("--status", help="pending, delivered, failed, ...")] = None,
    limit: LimitOption = 100,
    as_json: JsonOption = False,
) -> None:
    """Notifications, newest first."""
    from storage import queries

    with looking(config, database) as engine:
        rows = queries.deliveries(engine, status=status, since_ms=since_ms(since), limit=limit)
    columns = ("delivery_id", "event", "channel", "status", "attempts", "delivered_at", "last_error")
    print_rows(rows, columns, empty="nothing was sent", as_json=as_json)


@deliveries_app.command("retry")
def retry_delivery(
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY")],
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """Send a notification that was given up once more, under the same id; the running daemon sends it."""
    from storage.outbox import Outbox

    with reading(config, database) as engine:
        if not Outbox(engine).retry(delivery_id, SystemClock().now_ms()):
            raise InferwatchError(f"no notification {delivery_id} that was given up")
    say(f"{delivery_id} will be sent again")


@models_app.command("list")
def list_models(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Model versions, newest first."""
    from storage import queries

    with looking(config, database) as engine:
        rows = newer(queries.models(engine), "trained_at", since)
    print_rows(
        rows,
        ("version", "detector", "trained_at", "status", "reason"),
        empty="no model was trained yet; the one that ships with the package is in force",
        as_json=as_json,
    )


@models_app.command("show")
def show_model(
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """One model version with everything that was measured of it."""
    from storage import queries

    with looking(config, database) as engine:
        found = [row for row in queries.models(engine) if row["version"] == version]
    if not found:
        raise InferwatchError(f"no model version {version}; `inferwatch models list` shows them")
    print_json(found[0])


@models_app.command("drift")
def list_drift(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Comparisons of the newest windows with those trained on, newest first."""
    from storage import verdicts

    with looking(config, database) as engine:
        found = [verdicts.shown(row) for row in verdicts.all_verdicts(engine)]
    for row in found:
        row["largest_index"] = max(row["index"].values(), default=None)
    print_rows(
        newer(found, "checked_at", since),
        ("checked_at", "reason", "shifted", "largest_index", "series", "trained_at"),
        empty="nothing was compared yet: the first comparison comes two days after the first training data",
        as_json=as_json,
    )


@models_app.command("promote")
def promote_model(
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """Put a stored version in force."""
    from storage.models import ModelRegistry

    with reading(config, database) as engine:
        if not ModelRegistry(engine).promote(version):
            raise InferwatchError(f"no model version {version}; `inferwatch models list` shows them")
    say(f"{version} is the champion")


@models_app.command("rollback")
def rollback_model(config: ConfigOption = None, database: DatabaseOption = None) -> None:
    """Take the champion back; the one before is in force again."""
    from storage.models import ModelRegistry

    with reading(config, database) as engine:
        version = ModelRegistry(engine).rollback()
    say(f"{version or 'the model that ships with the package'} is in force again")
