"""`inferwatch simulate`."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.clock import SystemClock, rfc3339
from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, load_settings, since_ms
from monitor.output import print_json_line, print_rows, say

if TYPE_CHECKING:
    from monitor.simulate import SimulateOptions, SimulateSummary


def simulate(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSON lines; .gz is packed")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", "--kafka", metavar="NAME", help="Kafka topic to write to")
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option("--bootstrap-servers", metavar="HOST:PORT", help="default: source.bootstrap_servers"),
    ] = None,
    days: Annotated[float, typer.Option("--days", help="days of event time")] = 1.0,
    services: Annotated[int, typer.Option("--services", min=1, help="how many model services")] = 4,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", help="mean records per second and service; default 0.05 to 2"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="the same seed gives the same bytes")] = 1,
    start: Annotated[str | None, typer.Option("--start", metavar="TIME", help="7d (ago) or RFC 3339")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="KIND@SERVICE:START+DURATION[*SIZE]", help="repeatable"),
    ] = None,
    random_faults: Annotated[
        int, typer.Option("--random-faults", metavar="N", help="per service and day")
    ] = 0,
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="FILE", help="where to write which faults there are")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on at the pace of the clock")] = False,
    list_faults: Annotated[
        bool, typer.Option("--list-faults", help="print the kinds of faults and end")
    ] = False,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write realistic logs of imaginary model services, with faults, to a file or a Kafka topic."""
    if list_faults:
        _list_faults(as_json)
        return
    if (out is None) == (topic is None):
        raise typer.BadParameter("give either --out FILE or --topic NAME", param_hint="--out")
    from monitor.simulate import SimulateOptions

    options = SimulateOptions(
        out=out,
        topic=topic,
        bootstrap_servers=bootstrap_servers or load_settings(config, database).source.bootstrap_servers,
        days=days,
        services=services,
        rate_per_s=rate,
        seed=seed,
        start_ms=since_ms(start, "--start"),
        faults=tuple(fault or ()),
        random_faults=random_faults,
        truth=truth,
        follow=follow,
    )
    _say_written(_written(options, as_json), as_json)


def _written(options: SimulateOptions, as_json: bool) -> SimulateSummary:
    """Write the log, until it is done or a signal ends it."""
    from monitor.simulate import simulate as run_simulation

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    progress = _show_progress if sys.stderr.isatty() and not as_json else None
    return run_simulation(options, clock=SystemClock(), stop=stop, on_progress=progress)


def _say_written(summary: SimulateSummary, as_json: bool) -> None:
    if as_json:
        truth = [dataclasses.asdict(fault) for fault in summary.truth]
        print_json_line({**dataclasses.asdict(summary), "truth": truth})
        return
    say(
        f"{summary.records:,} records of {len(summary.series)} services from {rfc3339(summary.start_ms)} to "
        f"{rfc3339(summary.end_ms)}, {len(summary.truth)} faults"
    )


def _list_faults(as_json: bool) -> None:
    from monitor.fault_kinds import KINDS

    columns = ("name", "help", "unit", "mild", "gross")
    rows = [{column: getattr(kind, column) for column in columns} for kind in KINDS.values()]
    print_rows(rows, columns, empty="", as_json=as_json)


def _show_progress(at_ms: int, records: int) -> None:
    sys.stderr.write(f"\r\x1b[K{rfc3339(at_ms)[:16]}  {records:,} records")
    sys.stderr.flush()
