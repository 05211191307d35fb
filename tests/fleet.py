"""A fleet of daemons under faults: what is done to it, and the audit of what it left."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from monitor.daemon import EXIT_FORCED
from tests import services
from tests.daemons import Daemon, rows, snapshot, totals, wait_for
from tests.receivers import Hook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STOP_S = 9.0  # longer than the session and the time a rebalance takes
EXIT_S = 5.0
SETTLE_S = 600.0  # ample on a machine that is busy with other things too
OWNERS = "select owner from partitions where owner is not null"


def write_config(path: Path, *, bootstrap: str, topic: str, group: str, database: str, webhook: str) -> Path:
    path.write_text(
        f'[source]\nbootstrap_servers = "{bootstrap}"\ntopics = ["{topic}"]\ngroup_id = "{group}"\n'
        f'session_timeout_s = 6\n[database]\nurl = "{database}"\ncommit_interval_s = 0.3\n'
        "[http]\nenabled = false\n[delivery]\ntimeout_s = 1\n[training]\nenabled = false\n"
        f'[channels.audit]\nurl = "{webhook}"\nsecret = "{SECRET}"\nallow_private = true\n'
    )
    return path


def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        return {tp.partition: end for tp, end in consumer.end_offsets(parts).items()}
    finally:
        consumer.close()


def owner_pid(owner: str) -> int:
    """The process behind an owner's name, HOST-PID-RANDOM."""
    return int(owner.split("-")[-2])


class Trickle(threading.Thread):
    """Produces messages in order, spread over the faults that are still to come.

    `messages` are (partition, value); an idempotent producer, so that a broker that is killed doubles none.
    """

    PERIOD_S = 3.0  # about the time one fault takes

    def __init__(
        self, bootstrap: str, topic: str, messages: Sequence[tuple[int, bytes]], faults: int
    ) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.topic, self.messages, self.faults_left = bootstrap, topic, messages, faults
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def _run(self) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap, enable_idempotence=True, delivery_timeout_ms=180_000,
            max_block_ms=180_000, linger_ms=20, reconnect_backoff_max_ms=500,
        )  # fmt: skip
        sent, share = 0, 0.0
        while sent < len(self.messages):
            left_s = self.faults_left * self.PERIOD_S
            share += (len(self.messages) - sent) / left_s * 0.1 if left_s else len(self.messages)
            for partition, value in self.messages[sent : sent + int(share)]:
                producer.send(self.topic, value=value, partition=partition)
            sent, share = sent + int(share), share % 1
            time.sleep(0.1 if left_s else 0.0)
        producer.flush()
        producer.close()


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
    """Daemons of one group over one database; every fault is counted by its name."""

    folder: Path
    config: Path
    database: str
    rng: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    exits: list[Exit] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)
    _stopped: set[int] = field(default_factory=set)

    def add(self) -> Daemon:
        daemon = Daemon(self.config, self.folder / f"daemon-{len(list(self.folder.glob('daemon-*')))}.log")
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

    def victim(self) -> Daemon:
        """Any daemon, mostly one that owns partitions."""
        deadline = time.monotonic() + 30
        while not (owners := self.owners()) and time.monotonic() < deadline:
            time.sleep(0.2)
        running = self.running()
        owning = [d for d in running if d.process is not None and d.process.pid in owners]
        return self.rng.choice(owning if owning and self.rng.random() < 0.8 else running)

    def kill(self) -> None:
        daemon = self.victim()
        assert daemon.process is not None
        self.faults["kill -9"] += 1
        self.faults["kill -9 of an owner"] += daemon.process.pid in self.owners()
        daemon.kill()
        self.daemons.remove(daemon)
        self.add()

    def freeze(self) -> None:
        """SIGSTOP for longer than the session; SIGCONT comes while other faults go on."""
        daemon = self.victim()
        assert daemon.process is not None
        pid = daemon.process.pid
        self.faults["SIGSTOP longer than the session"] += 1
        daemon.send(signal.SIGSTOP)
        self._stopped.add(pid)

        def go_on() -> None:
            daemon.send(signal.SIGCONT)
            self._stopped.discard(pid)

        timer = threading.Timer(STOP_S, go_on)
        timer.daemon = True
        timer.start()

    def join(self) -> None:
        self.faults["join"] += 1
        self.add()

    def leave(self) -> None:
        """SIGTERM under load; the clock runs until the process has ended."""
        if len(self.running()) < 2:
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


def settled(database: str, produced: int) -> bool:
    """Everything read, every transition folded, every notification delivered."""
    try:
        waiting = "select (select count(*) from alert_transitions where not folded) as folds, "
        waiting += "(select count(*) from deliveries where status in ('pending', 'claimed')) as sends"
        found = rows(database, waiting)[0]
        return totals(database)["position"] == produced and not found["folds"] and not found["sends"]
    except Exception:  # the database is being made, or is away
        return False


@dataclass(frozen=True)
class Promise:
    text: str
    count: str
    kept: bool
    timed: bool = False  # depends on how fast the machine is; a test does not ask


def audit(
    *, database: str, oracle: str, produced: int, received: Hook, oracle_received: Hook, fleet: Fleet
) -> list[Promise]:
    """The promises with what was counted; compares row for row with the run that nothing disturbed."""
    found = totals(database)
    told = found["accepted"] + found["rejected"] + found["late"] + found["duplicates"]
    promises = [
        Promise(
            "accepted + rejected + late + duplicate = produced",
            f"{found['accepted']:,} + {found['rejected']:,} + {found['late']:,} + {found['duplicates']:,} "
            f"= {told:,} of {produced:,}",
            told == produced == found["records"] and found == totals(oracle),
        )
    ]
    left, right = snapshot(database), snapshot(oracle)
    for view, expected in right.items():
        missing, extra = Counter(expected) - Counter(left[view]), Counter(left[view]) - Counter(expected)
        promises.append(
            Promise(
                f"{view} equals the undisturbed run",
                f"{len(left[view]):,} rows, {missing.total()} missing, {extra.total()} not expected",
                left[view] == expected,
            )
        )
    counts = {view: len(right[view]) for view in ("alert_history", "incident_history")}
    counts["deliveries"] = len(set(oracle_received.ids))
    promises.append(
        Promise(
            "there is something to compare",
            ", ".join(f"{count} in {name}" for name, count in counts.items()),
            all(counts.values()),
        )
    )
    for name, url, hook in (("", database, received), (" (undisturbed)", oracle, oracle_received)):
        ids = {row["delivery_id"] for row in rows(url, "select delivery_id from delivery_history")}
        got = Counter(hook.ids)
        promises.append(
            Promise(
                f"every delivery id received at least once{name}",
                f"{len(ids)} ids, {len(ids - set(got))} missing, {got.total() - len(got)} sent again",
                ids == set(got),
            )
        )
    return promises + _endings(database, fleet)


def _endings(database: str, fleet: Fleet) -> list[Promise]:
    """How the daemons ended. One that was killed, or whose end was forced (a database or broker that does
    not answer, a machine too busy), may leave claims: its next owner takes them, and at the end none comes.
    """
    asked = [end for end in fleet.exits if end.took_s is not None]
    slowest_s = max((end.took_s or 0.0 for end in asked), default=0.0)
    forced = [end for end in asked if end.code == EXIT_FORCED]
    wrong = [end for end in fleet.exits if end.wrong]
    owners = [owner_pid(row["owner"]) for row in rows(database, OWNERS)]
    orderly = {end.pid for end in asked if end.code == 0}
    left = [pid for pid in owners if pid in orderly]
    return [
        Promise(
            f"SIGTERM ends within {EXIT_S:g} s",
            f"{len(asked)} times, slowest {slowest_s:.1f} s",
            slowest_s <= EXIT_S,
            timed=True,
        ),
        Promise("SIGTERM ends in order", f"{len(forced)} of {len(asked)} forced", not forced, timed=True),
        Promise(
            "no claim left by a daemon that ended in order",
            f"{len(left)} left, {len(owners) - len(left)} by others",
            not left,
        ),
        Promise(
            "no daemon ends by itself or with an error",
            f"{len(wrong)} ended" + "".join(f"\n{end}" for end in wrong),
            not wrong,
        ),
    ]


def run_faults(fleet: Fleet, trickle: Trickle, faults: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """One fault after the other, at random moments, while records arrive."""
    for name, do in faults:
        time.sleep(fleet.rng.uniform(0.3, 3.0))
        if trickle.error is not None:
            raise trickle.error
        do()
        trickle.faults_left -= 1
        with contextlib.suppress(Exception):
            print(f"{time.strftime('%H:%M:%S')} {name:12} {totals(fleet.database)['position']:,} of "
                  f"{len(trickle.messages):,}", flush=True)  # fmt: skip


def stop_all(fleet: Fleet) -> None:
    deadline = time.monotonic() + 2 * STOP_S
    while fleet._stopped and time.monotonic() < deadline:
        time.sleep(0.1)
    for daemon in list(fleet.daemons):
        fleet.terminate(daemon)


def wait_settled(name: str, database: str, produced: int, daemon: Daemon | None = None) -> None:
    wait_for(f"the end of the {name} run", lambda: settled(database, produced), SETTLE_S, daemon)


def by_series(messages: Sequence[bytes], partitions: int) -> list[tuple[int, bytes]]:
    """Every message with a partition that its series always has; what is no record goes round."""
    numbers: dict[str, int] = {}
    placed = []
    for i, message in enumerate(messages):
        try:
            record = json.loads(message)
            series = f"{record['model']}/{record['endpoint']}"
        except (ValueError, KeyError, TypeError):
            placed.append((i % partitions, message))
            continue
        placed.append((numbers.setdefault(series, len(numbers) % partitions), message))
    return placed


def make_topic(bootstrap: str, partitions: int) -> str:
    return services.create_topic(bootstrap, partitions=partitions)


def delete_topic(bootstrap: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.delete_topics([topic])
    finally:
        admin.close()
