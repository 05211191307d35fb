"""`inferwatch run`: wiring, signals, and an orderly end.

Exit codes beside those of every command: 74 when an orderly end took too long or could not give the
partitions back (a database or broker that hangs, a machine too busy), 75 when the reading loop was stuck
(see monitor.watchdog). In both cases nothing is lost: what was not committed is read again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

import structlog

from monitor.config import Settings
from monitor.jobs import schedule
from monitor.owning import RETRY_FIRST_S, RETRY_MAX_S
from monitor.pipeline import Pipeline
from monitor.runtime import Runtime
from monitor.sources.base import Source
from monitor.sources.file import FileSource
from monitor.sources.opening import kafka_source
from monitor.watchdog import Watchdog, stack_of
from storage.engine import is_transient

log = structlog.get_logger()

POLL_S = 0.2
STOP_WITHIN_S = 4.7
LAST_WORDS_S = 0.7  # of it, for saying why and for giving the partitions back
LEAVE_S = 1.5  # of it, for leaving the consumer group
EXIT_FORCED = 74  # EX_IOERR


class Stop:
    """SIGTERM and SIGINT: the loop ends at the next batch; the process ends within STOP_WITHIN_S anyhow.

    The handler takes no lock (the thread that it interrupts may hold it), so it does not log.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.pipeline: Pipeline | None = None
        self._thread_id = threading.get_ident()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.pipeline is None:  # still starting, perhaps compiling: nothing is owned or drafted yet
            os.write(2, b'{"event": "stopped", "reason": "signal before the start", "level": "info"}\n')
            os._exit(0)
        self.pipeline.halted = True
        if not self.asked.is_set():
            self.asked.set()
            threading.Thread(target=self._force, name="stop", daemon=True).start()

    def _force(self) -> None:
        """Time is up: say where the loop stands, give back what it holds, and end, whatever hangs."""
        time.sleep(STOP_WITHIN_S - LAST_WORDS_S)
        last_words = threading.Thread(target=self._last_words, name="last words", daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_S)
        os._exit(EXIT_FORCED)

    def _last_words(self) -> None:
        stack = stack_of(self._thread_id)
        log.error("stop_forced", after_s=STOP_WITHIN_S, exit_code=EXIT_FORCED, stack=stack)
        assert self.pipeline is not None
        with suppress(Exception):  # the database hangs as well
            given_back = self.pipeline.parts.ledger.give_back()
            log.info("given_back", partitions=given_back)


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until a bounded log ends; returns the exit code.

    On a signal: stop polling, commit what is drafted, give the partitions back, stop delivery and HTTP.
    A database that is away at the start is waited for.
    """
    stop = Stop()
    with ExitStack() as stack:
        runtime = stack.enter_context(_begin(settings))
        _warm_up(runtime)
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
        given_back = pipeline.leave()
        source.close(LEAVE_S)
    log.info("stopped")
    return 0 if given_back else EXIT_FORCED


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


def _warm_up(runtime: Runtime) -> None:
    """Load the model and compile; a model that cannot be had yet is loaded by the first claim."""
    from monitor.warming import warm_up

    try:
        scorer = runtime.models.at_claim(None)
    except Exception as error:
        if not is_transient(error):
            raise
        return
    warm_up(runtime.settings, scorer)


def make_source(settings: Settings) -> Source:
    source = settings.source
    if source.kind == "kafka":
        return kafka_source(source)
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
                "stalled": p.silence.stalled,
            }
            for p in list(pipeline.owned.values())
        },
        "stalled": [str(p.key) for p in list(pipeline.owned.values()) if p.silence.stalled],
        "quiet_s": {topic: round(seconds, 1) for topic, seconds in pipeline.quiet_s().items()},
        "source_away_s": round(pipeline.parts.source.away_s(), 1),
        "unclaimed": [str(key) for key in list(pipeline.unclaimed.assigned)],
        "database_reachable": not pipeline.blocked,
        "stuck": watchdog.stalled,
    }
