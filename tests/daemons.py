"""Whole processes under test: daemons to start and kill, and what they left in the database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

from storage.engine import connect
from tests.forks import Forked, Forks

VIEWS: dict[str, str] = {
    "window_history": "series, window_start",
    "alert_history": "alert_id",
    "incident_history": "incident_id",
    "delivery_history": "delivery_id",
    "rejected_records": 'topic, "partition", "offset"',
}
WALL_CLOCK_COLUMNS = {
    "received_at",
    "first_attempt_at",
    "delivered_at",
    "attempts",
    "last_error",
    "status_of_delivery",
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "monitor.cli", *arguments]


class Daemon:
    """`inferwatch run` as a process of its own; with `forks` a fork of one that has started."""

    def __init__(
        self,
        config: Path,
        log: Path,
        environment: dict[str, str] | None = None,
        forks: Forks | None = None,
    ) -> None:
        self.log = log
        self._environment = {**os.environ, **(environment or {})}
        self._config, self._forks = config, forks
        self._arguments = command("run", "--config", str(config))
        self.process: subprocess.Popen[bytes] | Forked | None = None

    def start(self) -> None:
        if self._forks is not None:
            self.process = self._forks.start(self._config, self.log)
            return
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self._arguments, stdout=out, stderr=subprocess.STDOUT, env=self._environment
            )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and reap."""
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        self.send(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout_s)

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def wait_for(
    what: str, condition: Callable[[], bool], timeout_s: float, daemon: Daemon | None = None
) -> None:
    """Poll until `condition` holds. Raises AssertionError with the end of the daemon's log."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        if daemon is not None and daemon.process is not None and daemon.process.poll() is not None:
            break
        time.sleep(0.05)
    tail = (
        daemon.log.read_text(errors="replace")[-4000:] if daemon is not None and daemon.log.exists() else ""
    )
    raise AssertionError(f"{what} did not happen within {timeout_s:.0f} s\n{tail}")


def rows(url: str, statement: str) -> list[dict[str, Any]]:
    """Rows of one query on a database that a daemon may be writing to."""
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement)).mappings()]
    finally:
        engine.dispose()


def totals(url: str) -> dict[str, int]:
    """Sums over all partitions: records, accepted, rejected, late, duplicates, position."""
    sums = "coalesce(sum(records), 0) as records, coalesce(sum(accepted), 0) as accepted, " + (
        "coalesce(sum(rejected), 0) as rejected, coalesce(sum(late), 0) as late, "
        "coalesce(sum(duplicates), 0) as duplicates, coalesce(sum(next_offset), 0) as position"
    )
    return {name: int(n) for name, n in rows(url, f"select {sums} from partitions")[0].items()}


def snapshot(
    url: str, views: Sequence[str] = ("window_history", "alert_history", "incident_history")
) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the stable views, in a fixed order, less what depends on the wall clock."""
    taken = {}
    for view in views:
        found = rows(url, f"select * from {view} order by {VIEWS[view]}")
        taken[view] = [
            tuple((name, str(value)) for name, value in row.items() if name not in WALL_CLOCK_COLUMNS)
            for row in found
        ]
    return taken
