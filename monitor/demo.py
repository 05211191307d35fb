"""`inferwatch demo`: bundled logs of a few model services through the whole path, on this machine alone."""

from __future__ import annotations

import importlib.resources
import secrets
import signal
import threading
import time
from base64 import b64encode
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from monitor.clock import rfc3339
from monitor.config import ChannelSettings, DatabaseSettings, Settings
from monitor.listen import Received, Receiver
from monitor.replay import ReplayProgress, ReplaySummary, replay

DATABASE = "inferwatch-demo.db"
NEXT_STEPS = """What to type next:
  inferwatch incidents list --database {url}
  inferwatch incidents show 1 --database {url}
  inferwatch series --database {url}
  inferwatch inspect YOUR_LOG.jsonl       what Inferwatch makes of a log of yours
  inferwatch init                         a commented inferwatch.toml to begin with"""


def demo(*, once: bool, workdir: Path, settings: Settings | None = None) -> int:
    """Replay the bundled logs into SQLite under `workdir`, show and deliver each incident, then serve.

    `once` returns after the summary. Returns the exit code: 1 if no incident was opened or one
    notification did not arrive with a valid signature.
    """
    console = Console(soft_wrap=True)
    workdir.mkdir(parents=True, exist_ok=True)
    database = workdir / DATABASE
    for stale in workdir.glob(f"{DATABASE}*"):
        stale.unlink()
    secret = "whsec_" + b64encode(secrets.token_bytes(24)).decode()
    shown = _Shown(console)
    with Receiver(secret=secret, on_event=shown.received) as receiver:
        settings = (settings or Settings()).model_copy(
            update={
                "database": DatabaseSettings(url=f"sqlite:///{database}"),
                "channels": {
                    "demo": ChannelSettings(
                        type="webhook", url=receiver.url, secret=secret, allow_private=True
                    )
                },
            }
        )
        console.print(
            "[bold]Inferwatch demo[/bold]: recorded logs of five model services, replayed at full speed"
        )
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as progress:
            bar = progress.add_task("compiling the numeric kernels, once per machine", total=None)

            def on_progress(now: ReplayProgress) -> None:
                if not now.records:
                    shown.started_s = time.monotonic()
                day = rfc3339(now.watermark_ms)[:16] if now.watermark_ms is not None else "starting"
                what = "training both detectors on the quiet part" if now.training else f"event time {day}"
                progress.update(bar, completed=now.bytes_read, total=now.bytes_total, description=what)

            summary = replay(settings, [sample_log()], deliver=True, on_progress=on_progress)
        receiver.wait_until_quiet()
    _print_summary(console, summary, shown, settings.database.url)
    if not once:
        return _serve(console, settings)
    return 0 if summary.incidents and shown.verified and not shown.refused else 1


def sample_log() -> Path:
    """The bundled log: native records, gzip, in event-time order."""
    return Path(str(importlib.resources.files("monitor") / "data" / "demo" / "services.jsonl.gz"))


class _Shown:
    """Prints each notification as it arrives, and remembers whether its signature held."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started_s = time.monotonic()  # then, that of the first record
        self.first_s: float | None = None
        self.verified = 0
        self.refused = 0

    def received(self, event: Received) -> None:
        if not event.verified:
            self.refused += 1
            self.console.print(f"[red]signature refused:[/red] {escape(event.reason)}")
            return
        self.verified += 1
        if self.first_s is None:
            self.first_s = time.monotonic() - self.started_s
        data = event.payload["data"]
        colour = {"critical": "red", "major": "yellow"}.get(str(data["severity"]), "cyan")
        if event.payload["type"] == "incident.resolved":
            self.console.print(
                f"  [green]resolved[/green] {escape(str(data['title']))} at {data['resolved_at']}"
            )
            return
        kind = str(event.payload["type"]).removeprefix("incident.")
        self.console.print(
            f"[bold {colour}]incident {kind}[/bold {colour}] {data['severity']}: "
            f"{escape(str(data['title']))}\n"
            f"  {escape(str(data['summary']))}\n"
            f"  webhook received, signature verified (webhook-id {event.delivery_id})"
        )


def _print_summary(console: Console, summary: ReplaySummary, shown: _Shown, url: str) -> None:
    first = "none" if shown.first_s is None else f"{shown.first_s:.1f} s after the first record"
    console.print(
        f"\n[bold]{summary.records:,}[/bold] records of {summary.series} series became "
        f"[bold]{summary.windows:,}[/bold] windows, {summary.alerts} alerts and "
        f"[bold]{summary.incidents}[/bold] incidents in {summary.seconds:.1f} s "
        f"({summary.training_seconds:.1f} s of training, {summary.warm_up_seconds:.1f} s of warm-up before, "
        f"{summary.records_per_second:,.0f} records/s besides).\n"
        f"First incident: {first}. Notifications: {shown.verified} received with a valid signature, "
        f"{shown.refused} refused.\n"
    )
    console.print(NEXT_STEPS.format(url=url), highlight=False)


def _serve(console: Console, settings: Settings) -> int:
    from monitor.api.app import create_app
    from monitor.api.server import serve_in_thread
    from storage.engine import connect

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = connect(settings.database.url)
    server = serve_in_thread(
        create_app(engine, health=lambda: {"demo": True}, settings=settings),
        settings.http.host,
        settings.http.port,
    )
    console.print(f"\nThe incidents are served at [bold]{server.url}[/bold] (Ctrl-C ends the demo)")
    stop.wait()
    server.stop()
    engine.dispose()
    return 0
