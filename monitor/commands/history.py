"""Commands that read what was stored: alerts, windows, series, deliveries."""

from __future__ import annotations

from typing import Annotated

import typer

from monitor.commands import completion
from monitor.commands.common import LimitOption, SinceOption, Source, group, one_of, since_ms
from monitor.commands.shapes import Actor, Engine, Rows, acts, prints
from monitor.errors import InferwatchError
from storage.names import DELIVERY_STATES, VERDICTS

deliveries_app = group("What was sent, and what became of it.")

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


@prints(("window_start", "window_end", "status", "severity", "score", "series", "summary"), empty="no alerts")
def alerts(
    source: Source,
    since: SinceOption = None,
    series: Annotated[
        str | None,
        typer.Option(
            "--series", metavar="NAME", help="only of this series", autocompletion=completion.series
        ),
    ] = None,
    limit: LimitOption = 100,
) -> Rows:
    """Alerts, newest first."""
    from storage import queries

    return queries.alerts(source, series=series, since_ms=since_ms(since), limit=limit)


@prints(WINDOW_COLUMNS, empty="no windows of {series}; `inferwatch series` shows what there is")
def windows(
    source: Source,
    series: Annotated[
        str,
        typer.Argument(
            metavar="SERIES", help="a name that `inferwatch series` shows", autocompletion=completion.series
        ),
    ],
    since: SinceOption = None,
    step: Annotated[
        str | None,
        typer.Option("--step", metavar="1h", help="hours, which are kept longer"),
    ] = None,
    limit: LimitOption = 200,
) -> Rows:
    """The newest windows of one series, oldest of them first."""
    if step not in (None, "1h"):
        raise typer.BadParameter("use 1h, or leave it out for single windows", param_hint="--step")
    if step == "1h":
        from storage.rollups import hours

        return hours(source, series, since_ms=since_ms(since), limit=limit)
    from storage import queries

    return queries.windows(source, series, since_ms=since_ms(since), limit=limit)


@prints(("series", "windows", "last_window_start", "last_score", "last_is_anomalous"), empty="no series yet")
def series(source: Source, since: SinceOption = None, limit: LimitOption = 1_000) -> Rows:
    """Series with their newest window and score."""
    from storage import queries

    return queries.series(source, since_ms=since_ms(since), limit=limit)


@prints(("at", "series", "model_version", "previous_version", "verdict", "summary"), empty="no deployments")
def deployments(
    source: Source,
    since: SinceOption = None,
    series: Annotated[
        str | None,
        typer.Option(
            "--series", metavar="NAME", help="only of this series", autocompletion=completion.series
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(
            "--verdict",
            help="only worse, different, better, alike or unclear ones",
            autocompletion=completion.among(*VERDICTS),
        ),
    ] = None,
    limit: LimitOption = 100,
) -> Rows:
    """New model versions, newest first, and how each compares with the one it replaces."""
    one_of(verdict, VERDICTS, "--verdict")
    from storage import queries

    return queries.deployments(source, series=series, since_ms=since_ms(since), verdict=verdict, limit=limit)


@deliveries_app.command("list")
@prints(
    ("delivery_id", "event", "channel", "status", "attempts", "delivered_at", "last_error"),
    empty="nothing was sent",
)
def list_deliveries(
    source: Source,
    since: SinceOption = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            help="pending, claimed, delivered or dead",
            autocompletion=completion.among(*DELIVERY_STATES),
        ),
    ] = None,
    limit: LimitOption = 100,
) -> Rows:
    """Notifications, newest first."""
    one_of(status, DELIVERY_STATES, "--status")
    from storage import queries

    return queries.deliveries(source, status=status, since_ms=since_ms(since), limit=limit)


@deliveries_app.command("retry")
@acts
def retry_delivery(
    engine: Engine,
    person: Actor,
    delivery_id: Annotated[
        str, typer.Argument(metavar="DELIVERY", autocompletion=completion.failed_deliveries)
    ],
) -> str:
    """Send a notification that was given up once more, under the same id; the running daemon sends it."""
    from storage.outbox import Outbox

    if not Outbox(engine).retry(delivery_id, person.now_ms, person):
        raise InferwatchError(
            f"no notification {delivery_id} that was given up; "
            "`inferwatch deliveries list --status dead` shows them"
        )
    return f"{delivery_id} will be sent again"
