"""`inferwatch run --workers N`: daemons of one consumer group that share the partitions of one machine.

Python runs on one core at a time, so one daemon uses little more than one. Each worker is `inferwatch run` as
it would run alone, a process of its own; the group gives each its partitions and the database keeps them
apart, as it does for members on many machines. This process starts them, starts those anew that have died,
and passes signals on. Where it dies itself, they see the end of their standard input and end in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

from monitor.config import Settings
from monitor.config_errors import PREFIX
from monitor.daemon import EXIT_FORCED, STOP_WITHIN_S
from monitor.errors import ConfigError

log = structlog.get_logger()

RESTART_FIRST_S, RESTART_MAX_S = 1.0, 30.0
STEADY_S = 60.0  # a worker that ran for so long begins anew with the shortest wait
LOOK_S = 0.1
KILL_AFTER_S = STOP_WITHIN_S + 3.0
SAME_AGAIN = frozenset({2, 78})  # wrong usage or configuration


def require_for_workers(settings: Settings, workers: int) -> None:
    """Raises ConfigError where `workers` (at least 2) processes cannot share the work."""
    fix = f"--workers {workers} "
    if settings.source.kind != "kafka":
        raise ConfigError("source.kind", settings.source.kind, f"{fix}share partitions of Kafka; run one")
    if settings.database.url.startswith("sqlite"):
        url = settings.database.url
        raise ConfigError("database.url", url, f"{fix}need PostgreSQL, SQLite has one writer; run one")
    last = settings.http.port + workers - 1
    if settings.http.enabled and settings.http.port and last > 65_535:
        raise ConfigError("http.port", settings.http.port, f"{fix}take the ports up to {last}; choose less")


def end_with_parent() -> None:
    """In a worker: end in order when the standard input does, as whoever holds its other end has died."""

    def watch() -> None:
        while os.read(0, 1_024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def run_workers(settings: Settings, workers: int, arguments: Sequence[str]) -> int:
    """Run `inferwatch run ARGUMENTS` that many times until SIGTERM or SIGINT; returns the exit code.

    Worker 0 serves HTTP at `http.port`, the others at the ports behind it. Raises ConfigError.
    """
    require_for_workers(settings, workers)
    program = [sys.executable, "-m", "monitor.cli", "run", *arguments]
    port = settings.http.port
    ports = [{f"{PREFIX}HTTP__PORT": str(port + number)} if port else {} for number in range(workers)]
    return Supervisor([(program, environment) for environment in ports]).run()


@dataclass(slots=True)
class _Worker:
    number: int
    program: Sequence[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    began_s: float = 0.0
    wait_s: float = RESTART_FIRST_S
    due_s: float = 0.0  # when it is started, if it does not run

    def start(self, now_s: float) -> None:
        environment = {**os.environ, **self.environment}
        self.process = subprocess.Popen(  # noqa: S603  # our own program
            self.program, stdin=subprocess.PIPE, env=environment
        )
        self.starts, self.began_s = self.starts + 1, now_s
        log.info("worker_started", worker=self.number, pid=self.process.pid, starts=self.starts)

    def ended(self, code: int, now_s: float) -> None:
        self.process = None
        if now_s - self.began_s >= STEADY_S:
            self.wait_s = RESTART_FIRST_S
        self.due_s = now_s + self.wait_s
        log.error("worker_ended", worker=self.number, exit_code=code, starts_again_in_s=self.wait_s)
        self.wait_s = min(2 * self.wait_s, RESTART_MAX_S)


@dataclass(slots=True)
class Supervisor:
    """Keeps one process running for each (program, environment beside our own), until a signal comes.

    A worker whose very first start ends with a code of SAME_AGAIN ends all of them; any other end is followed
    by a new start, after a wait that doubles. Of one thread, the main one.
    """

    programs: Sequence[tuple[Sequence[str], Mapping[str, str]]]
    _stopping: bool = field(default=False, init=False)

    def run(self) -> int:
        """The exit code: that of SAME_AGAIN, else EXIT_FORCED if a worker did not end in order, else 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        workers = [_Worker(number, *program) for number, program in enumerate(self.programs)]
        code = 0
        try:
            while not self._stopping and not code:
                code = max(self._look_after(worker) for worker in workers)
                time.sleep(LOOK_S)
        finally:
            forced = _stop(workers)
        return code or forced

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _look_after(self, worker: _Worker) -> int:
        """A code that ends all of them, else 0."""
        now_s = time.monotonic()
        if worker.process is not None:
            code = worker.process.poll()
            if code is None:
                return 0
            if code in SAME_AGAIN and worker.starts == 1:
                worker.process = None
                return code
            worker.ended(code, now_s)
        elif now_s >= worker.due_s:
            worker.start(now_s)
        return 0


def _stop(workers: Sequence[_Worker]) -> int:
    """Ask every worker to end; kill those that do not in time. 0 where all ended in order."""
    running = [worker.process for worker in workers if worker.process is not None]
    for process in running:
        process.terminate()
    deadline_s, codes = time.monotonic() + KILL_AFTER_S, []
    for process in running:
        try:
            codes.append(process.wait(max(deadline_s - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    in_order = (0, -signal.SIGTERM)  # the latter while it was being loaded
    return 0 if all(code in in_order for code in codes) else EXIT_FORCED
