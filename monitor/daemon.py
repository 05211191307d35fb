"""`inferwatch run`: wiring, signals, and an orderly end.

Exit codes beside those of every command: 74 when an orderly end took too long (a database or broker that
hangs), 75 when the reading loop was stuck (see monitor.watchdog). In both cases nothing is lost: what was
not committed is read again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import numpy as np
import structlog

from monitor.config import Settings
from monitor.jobs import schedule
from monitor.pipeline import RETRY_FIRST_S, RETRY_MAX_S, Pipeline
from monitor.runtime import Runtime
from monitor.sources.base import Source
from monitor.sources.file import FileSource
from monitor.sources.kafka import KafkaSource
from monitor.watchdog import Watchdog, stack_of
from storage.engine import is_transient

log = structlog.get_logger()

POLL_S = 0.2
STOP_WITHIN_S = 4.5
LEAVE_S = 1.5  # of it, for leaving the consumer group
EXIT_FORCED = 74  # EX_IOERR


class Stop:
    """SIGTERM and SIGINT: the loop ends at the next batch; the process ends within STOP_WITHIN_S anyhow."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.pipeline: Pipeline | None = None
        self._thread_id = threading.get_ident()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.pipeline is None:  # still starting, perhaps compiling: nothing is owned or drafted yet
            log.info("stopped", reason="signal before the start")
            os._exit(0)
        self.pipeline.halted = True
        if not self.asked.is_set():
            self.asked.set()
            deadline = threading.Timer(STOP_WITHIN_S, self._force)
            deadline.daemon = True
            deadline.start()

    def _force(self) -> None:
        stack = stack_of(self._thread_id)
        log.error("stop_forced", after_s=STOP_WITHIN_S, exit_code=EXIT_FORCED, stack=stack)
        os._exit(EXIT_FORCED)


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until a bounded log ends; returns the exit code.

    On a signal: stop polling, commit what is drafted, give the partitions back, stop delivery and HTTP.
    A database that is away at the start is waited for.
    """
    stop = Stop()
    with ExitStack() as stack:
        runtime = stack.enter_context(_begin(settings))
        warm_up(runtime)
        source = make_source(settings)
        pipeline = stop.pipeline = runtime.pipeline(source)
        watchdog = Watchdog(pipeline, settings.source.stall_timeout_s, runtime.clock)
        runtime.start_delivery()
        scheduler = schedule(
            settings,
            runtime.engine,
            ledger=runtime.ledger,
            models=runtime.models,
            clock=runtime.clock,
            on_committed=runtime.delivery.wake,
        )
        stack.callback(scheduler.shutdown, wait=False)
        if settings.http.enabled:
            from monitor.api.app import create_app
            from monitor.api.server import serve_in_thread

            app = create_app(
                runtime.engine,
                health=lambda: health(pipeline, watchdog),
                settings=settings,
                clock=runtime.clock,
                on_change=runtime.delivery.wake,
            )
            server = serve_in_thread(app, settings.http.host, settings.http.port)
            stack.callback(server.stop)
            log.info("serving", url=server.url)
        log.info("started", source=settings.source.kind, database=runtime.engine.url.render_as_string())
        watchdog.start()
        stack.callback(watchdog.stop)
        while not stop.asked.is_set() and pipeline.turn(POLL_S):
            pass
        log.info("stopping", reason="signal" if stop.asked.is_set() else "end of log")
        watchdog.stop()
        pipeline.leave()
        source.close(LEAVE_S)
    log.info("stopped")
    return 0


@contextmanager
def _begin(settings: Settings) -> Iterator[Runtime]:
    """The runtime, once the database answers."""
    wait_s = RETRY_FIRST_S
    while True:
        runtime = Runtime(settings)
        try:
            runtime.__enter__()
            break
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("database_unavailable", error=str(error).splitlines()[0][:300], retry_in_s=wait_s)
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, RETRY_MAX_S)
    with ExitStack() as stack:
        stack.push(runtime)
        yield runtime


def warm_up(runtime: Runtime) -> None:
    """Load the model and score a few windows before joining the group.

    The first scores import and compile for seconds; a member that is given partitions can use them at once.
    """
    from detectors.types import STATISTICS, WindowBatch

    try:
        scorer = runtime.models.at_claim(None)
    except Exception as error:
        if not is_transient(error):
            raise
        return  # the first claim loads it
    states, window_ms = scorer.new_states(), runtime.settings.window.length_s * 1000
    values = np.ones((1, len(STATISTICS)))
    for n in range(3):
        scorer.score(WindowBatch(n * window_ms, window_ms, ["warm-up"], values, values), states)


def make_source(settings: Settings) -> Source:
    source = settings.source
    if source.kind == "kafka":
        return KafkaSource(source)
    return FileSource(source.paths if source.kind == "file" else ["-"], source)


def health(pipeline: Pipeline, watchdog: Watchdog) -> dict[str, object]:
    """What /healthz and /readyz show."""
    return {
        "partitions": {
            str(p.key): {
                "next_offset": p.next_offset,
                "committed_offset": p.committed_offset,
                "watermark_ms": p.windows.watermark_ms,
                "series": len(p.states),
                "end_offset": pipeline.ends.get(p.key),
                "waiting_for_model": p.at_gate,
            }
            for p in list(pipeline.owned.values())
        },
        "unclaimed": [str(key) for key in list(pipeline.unclaimed.assigned)],
        "database_reachable": not pipeline.blocked,
        "stuck": watchdog.stalled,
    }
