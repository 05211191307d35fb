"""A fleet of daemons, and what is done to it. tests/trickle.py feeds it, tests/audit.py says what it left."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from monitor.daemon import EXIT_FORCED
from tests.daemons import Daemon, rows
from tests.forks import Forks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SESSION_S = 6
STOP_S = 9.0  # longer than the session and the time a rebalance takes
OWNERS = "select owner from partitions where owner is not null"


def write_config(path: Path, *, bootstrap: str, topic: str, group: str, database: str, webhook: str) -> Path:
    path.write_text(
        f'[source]\nbootstrap_servers = "{bootstrap}"\ntopics = ["{topic}"]\ngroup_id = "{group}"\n'
        f'session_timeout_s = {SESSION_S}\n[database]\nurl = "{database}"\ncommit_interval_s = 0.3\n'
        "[http]\nenabled = false\n[delivery]\ntimeout_s = 1\n[training]\nenabled = false\n"
        f'[channels.audit]\nurl = "{webhook}"\nsecret = "{SECRET}"\nallow_private = true\n'
    )
    return path


def owner_pid(owner: str) -> int:
    """The process behind an owner's name, HOST-PID-RANDOM."""
    return int(owner.split("-")[-2])


@dataclass(frozen=True)
class Exit:
    """How a daemon ended that nobody killed."""

    pid: int
    code: int  # minus the number of a signal
    took_s: float | None  # since its SIGTERM; None = nobody asked it to end
    log: Path

    @property
    def wrong(self) -> bool:
        return self.took_s is None or self.code not in (0, EXIT_FORCED, -signal.SIGTERM)  # the last: starting

    def __str__(self) -> str:
        tail = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
        return f"process {self.pid} ended with {self.code} ({self.took_s} s after SIGTERM):\n{tail}"


@dataclass
class Fleet:
    """Daemons of one group over one database; every fault is counted by its name.

    A fleet of `size` 1 stays alone: SQLite has one daemon.
    """

    folder: Path
    config: Path
    database: str
    rng: random.Random
    size: int = 3
    forks: Forks | None = None
    faults: Counter[str] = field(default_factory=Counter)
    exits: list[Exit] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)
    _stopped: set[int] = field(default_factory=set)

    def add(self) -> Daemon:
        log = self.folder / f"daemon-{len(list(self.folder.glob('daemon-*')))}.log"
        log.touch()  # the next one counts it, also where this one has written nothing yet
        daemon = Daemon(self.config, log, forks=self.forks)
        daemon.start()
        self.daemons.append(daemon)
        return daemon

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()

    def owners(self) -> dict[int, int]:
        """pid -> partitions it holds now, as the database knows."""
        with contextlib.suppress(Exception):
            pids = Counter(owner_pid(row["owner"]) for row in rows(self.database, OWNERS))
            return {d.process.pid: pids[d.process.pid] for d in self.running() if pids[d.process.pid]}
        return {}

    def running(self) -> list[Daemon]:
        """Those that are alive and not stopped; one that ended by itself is counted and started again."""
        for daemon in list(self.daemons):
            assert daemon.process is not None
            if daemon.process.poll() is not None:
                self._ended(daemon, None)
                self.add()
        return [d for d in self.daemons if d.process is not None and d.process.pid not in self._stopped]

    def victim(self, owners_share: float = 0.8) -> Daemon:
        """Any daemon, with this probability one that owns partitions."""
        deadline = time.monotonic() + 30
        while not (owners := self.owners()) and time.monotonic() < deadline:
            time.sleep(0.2)
        running = self.running()
        owning = [d for d in running if d.process is not None and d.process.pid in owners]
        return self.rng.choice(owning if owning and self.rng.random() < owners_share else running)

    def kill(self) -> None:
        daemon = self.victim()
        assert daemon.process is not None
        self.faults["kill -9"] += 1
        self.faults["kill -9 of an owner"] += daemon.process.pid in self.owners()
        daemon.kill()
        self.daemons.remove(daemon)
        self.add()

    def freeze(self) -> None:
        """SIGSTOP of an owner for longer than the session; SIGCONT comes while other faults go on."""
        daemon = self.victim(owners_share=1.0)
        assert daemon.process is not None
        pid = daemon.process.pid
        self.faults["SIGSTOP longer than the session"] += 1
        daemon.send(signal.SIGSTOP)
        self._stopped.add(pid)

        def go_on() -> None:
            daemon.send(signal.SIGCONT)
            self._stopped.discard(pid)

        if self.size == 1:  # nobody else can be disturbed meanwhile
            time.sleep(STOP_S)
            go_on()
            return
        timer = threading.Timer(STOP_S, go_on)
        timer.daemon = True
        timer.start()

    def join(self) -> None:
        self.faults["join"] += 1
        self.add()

    def leave(self) -> None:
        """SIGTERM under load; the clock runs until the process has ended."""
        if len(self.running()) < 2 <= self.size:
            self.add()
        daemon = self.victim()
        self.faults["SIGTERM under load"] += 1
        self.terminate(daemon)

    def terminate(self, daemon: Daemon) -> None:
        started_s = time.monotonic()
        daemon.stop(60)
        self._ended(daemon, time.monotonic() - started_s)

    def _ended(self, daemon: Daemon, took_s: float | None) -> None:
        assert daemon.process is not None and daemon.process.returncode is not None
        self.exits.append(Exit(daemon.process.pid, daemon.process.returncode, took_s, daemon.log))
        self.daemons.remove(daemon)

    def logged(self, event: str) -> int:
        """How often the daemons logged an event."""
        return sum(
            log.read_text(errors="replace").count(f'"event": "{event}"')
            for log in self.folder.glob("daemon-*.log")
        )


def stop_all(fleet: Fleet) -> None:
    deadline = time.monotonic() + 2 * STOP_S
    while fleet._stopped and time.monotonic() < deadline:
        time.sleep(0.1)
    for daemon in list(fleet.daemons):
        fleet.terminate(daemon)
