"""Commands that run the path: demo, run, replay, train."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor import logs
from monitor.clock import rfc3339
from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, load_settings, reading, since_ms
from monitor.errors import ConfigError
from monitor.log_shapes import require_files
from monitor.output import complain, print_json, print_json_line, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.config import Settings
    from monitor.preview import Preview
    from monitor.replay import ReplayProgress, ReplaySummary


def demo(
    once: Annotated[bool, typer.Option("--once", help="end after the summary instead of serving")] = False,
    workdir: Annotated[Path, typer.Option("--workdir", metavar="DIR", help="where the database goes")] = Path(
        "demo"
    ),
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """Replay bundled logs through the whole path, show each incident, then serve the first page."""
    from monitor.demo import demo as run_demo

    logs.configure("warning")
    settings = load_settings(config, database) if config is not None or database is not None else None
    raise typer.Exit(run_demo(once=once, workdir=workdir, settings=settings))


def run(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", metavar="N", min=1, help="processes that share the partitions (PostgreSQL)"
        ),
    ] = 1,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    settings = load_settings(config, database)
    logs.configure("info")
    if workers > 1:
        from monitor.workers import run_workers

        given = {"--config": config, "--database": database}
        arguments = [str(part) for option in given.items() if option[1] is not None for part in option]
        raise typer.Exit(run_workers(settings, workers, ["--worker", *arguments]))
    _require_for_run(settings)
    from monitor.daemon import run as run_daemon

    if worker:
        from monitor.workers import end_with_parent

        end_with_parent()
    code = run_daemon(settings)
    sys.stderr.flush()
    os._exit(code)  # all is closed; taking the interpreter apart would cost seconds on a busy machine


def _require_for_run(settings: Settings) -> None:
    """What would end the daemon once it is warm is told before: files to read, the address to serve at."""
    source = settings.source
    if source.kind == "file":
        if not source.paths:
            raise ConfigError("source.paths", source.paths, 'no file is named; set source.paths = ["FILE"]')
        require_files(source.paths)
    if settings.http.enabled:
        from monitor.api.server import require_address

        require_address(settings.http.host, settings.http.port)


def replay(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="log files, .gz and .zst too; - is stdin")
    ],
    config: ConfigOption = None,
    database: DatabaseOption = None,
    speed: Annotated[str, typer.Option("--speed", metavar="max|N", help="event time per wall time")] = "max",
    deliver: Annotated[bool, typer.Option("--deliver", help="also send the notifications")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run recorded logs through the full pipeline; the last line is a summary as one JSON object."""
    factor = parse_speed(speed)
    settings = load_settings(config, database)
    require_files(files)
    from monitor.replay import replay as run_replay

    logs.configure("warning")
    show = _progress_bar() if sys.stderr.isatty() and not as_json else None
    summary = run_replay(settings, files, speed=factor, deliver=deliver, on_progress=show)
    if not as_json:
        _say_summary(summary)
    print_json_line(summary.as_json())
    _say_what_is_missing(summary, " ".join(map(str, files)))


def parse_speed(text: str) -> float | None:
    """`max` -> None, `60` or `60x` -> 60.0. Anything else is a usage error."""
    if text == "max":
        return None
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1e9:
        raise typer.BadParameter(
            "use max, or a number such as 60 (one minute of log per second)", param_hint="--speed"
        )
    return factor


def _say_summary(summary: ReplaySummary) -> None:
    say(
        f"{summary.records:,} records ({summary.rejected:,} rejected, {summary.duplicates:,} duplicates, "
        f"{summary.late:,} late) became {summary.windows:,} windows, {summary.alerts:,} alerts and "
        f"{summary.incidents:,} incidents"
    )


def _say_what_is_missing(summary: ReplaySummary, files: str) -> None:
    """On stderr, so that the last line stays the summary."""
    if not summary.records:
        complain(f"nothing new in {files}: no message, or all were replayed into this database before")
    elif summary.rejected:
        complain(f"{summary.rejected:,} messages were rejected; `inferwatch inspect {files}` says why")


def _progress_bar() -> Callable[[ReplayProgress], None]:
    """A line on stderr that is drawn over itself, a few times per second."""
    import time

    drawn_s = 0.0

    def show(now: ReplayProgress) -> None:
        nonlocal drawn_s
        if time.monotonic() - drawn_s < 0.2:
            return
        drawn_s = time.monotonic()
        share = (
            f"{now.bytes_read / now.bytes_total:4.0%}" if now.bytes_total else f"{now.bytes_read >> 20} MiB"
        )
        state = "training" if now.training else f"{now.records:,} records, {now.windows:,} windows"
        sys.stderr.write(f"\r\x1b[K{share}  {state}")
        sys.stderr.flush()

    return show


def train(
    preview: Annotated[
        bool,
        typer.Option("--preview", help="register nothing; show what would change on the stored windows"),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="with --preview: from when on; 7d counts from the newest window"
        ),
    ] = None,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train both detectors on the stored windows now; the result is promoted only if it is better."""
    logs.configure("warning")
    if preview:
        _train_preview(config, database, since or "7d", as_json)
        return
    if since is not None:
        raise typer.BadParameter("only --preview looks at a period", param_hint="--since")
    settings = load_settings(config, database)
    with reading(config, database):
        pass  # it is there, with the tables of this version: a training makes none
    from monitor.jobs import train_now

    result = train_now(settings)
    if as_json:
        print_json(result)
        return
    say(f"{result['version']}: {'promoted' if result['promoted'] else 'refused'} ({result['reason']})")
    say(f"trained in {result['training_seconds']} s on windows up to {result['trained_at']}")


def _train_preview(config: Path | None, database: str | None, since: str, as_json: bool) -> None:
    from monitor.preview import preview
    from storage.models import ModelRegistry

    settings = load_settings(config, database)
    with reading(config, database) as engine:
        registry = ModelRegistry(engine)
        from_ms = since_ms(since, now_ms=registry.newest_window_end_ms())
        assert from_ms is not None
        found = preview(settings, registry, from_ms)
    if as_json:
        print_json(found.as_json())
        return
    _say_preview(found)


def _say_preview(found: Preview) -> None:
    verdict = "would be promoted" if found.would_be_promoted else "would be refused"
    say(f"{found.challenger} {verdict} over {found.champion}: {found.reason}")
    changes = found.changes
    say(
        f"since {rfc3339(found.since_ms)}: {len(changes.stays)} past alerts stay, {len(changes.goes)} would "
        f"go, {len(changes.comes)} would come"
    )
    for alert in changes.goes:
        label = f" [{alert.label}]" if alert.label else ""
        say(f"  - {rfc3339(alert.start_ms)} {alert.severity} {alert.summary}{label}")
    for episode in changes.comes:
        say(f"  + {rfc3339(episode.start_ms)} {episode.series}, score {episode.peak_score:.3f}")
    for incident_id in changes.lost_incidents:
        say(f"  ! {incident_id} was labelled true_positive and would be lost")
    if changes.not_reproduced:
        say(
            f"{len(changes.not_reproduced)} past alerts say nothing: the stored windows do not give them "
            "with the model in force either"
        )
    say("nothing was changed; `inferwatch train` trains and decides")
