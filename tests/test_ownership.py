"""Three daemons share two partitions, and anything may happen to them in any order: a state machine.

What runs is the real pipeline over the real ledger; only the group's decisions, deaths, lost answers and
outages are played. After every step the database is asked for what must hold at any moment; at the end it is
read to the end and compared with a run that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from monitor.claims import Parts
from monitor.clock import ManualClock
from monitor.config import Settings
from monitor.incidents import make_fold
from monitor.models import FixedModel
from monitor.pipeline import Pipeline
from monitor.sources.base import Event, Partition
from monitor.sources.batches import pack
from monitor.sources.memory import MemorySource
from storage.engine import connect, upgrade
from storage.facts import Facts
from storage.ledger import CommitResult, Ledger
from storage.types import Commit, Fenced
from tests import services
from tests.daemons import snapshot
from tests.logs import START_MS, lines, with_bad_lines
from tests.scorers import PlainScorer

KEYS = [Partition("shared", 0), Partition("shared", 1)]
MEMBERS = 3


def log_of(partition: int, *, apart: bool = True) -> list[bytes]:
    """Services of one partition; those `apart` share nothing with another: no incident depends on both."""
    found = []
    for message in with_bad_lines(lines(services=2, minutes=45, per_minute=6, fault_at=25, seed=partition)):
        if b'"request_id"' in message:
            record = json.loads(message)
            for name in ("model", "endpoint", "model_version", "tenant") if apart else ("endpoint",):
                record[name] = f"p{partition}-{record[name]}"
            message = json.dumps(record).encode()
        found.append(message)
    return found


LOGS = [log_of(partition) for partition in range(2)]
VIEWS = ("window_history", "alert_history", "incident_history", "rejected_records")
STATE = 'select "partition", epoch, owner, next_offset, restart_offset, watermark_ms, records, '
STATE += "accepted, rejected, late, duplicates from partitions"


class Dead(BaseException):
    """The process is gone at this point."""


class GroupSource(MemorySource):
    """Holds the whole log; which partitions are read is decided from outside, as a group does."""

    def __init__(self, logs: list[list[bytes]]) -> None:
        super().__init__(bounded=False)
        self.away_for_s = 0.0
        for key, log in zip(KEYS, logs, strict=True):
            self.add(pack(key, range(len(log)), log))
        self._events.clear()
        self.group: set[Partition] = set()  # what the group has told this member

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        return super().poll(timeout_s, max_records) if self.away_for_s == 0 else []

    def length(self, key: Partition) -> int:
        return self._logs[key].end

    def away_s(self) -> float:
        return self.away_for_s

    def give(self, key: Partition) -> None:
        if key not in self.group:
            self.group.add(key)
            self.assign(key)

    def take(self, key: Partition) -> None:
        if key in self.group:
            self.group.discard(key)
            self.revoke(key)


class WatchedLedger(Ledger):
    """Loses answers, dies, and holds every commit that is written against the epoch in force."""

    lose_answers = 0
    dies_in: int | None = None  # statements
    away_for = 0  # statements
    fenced = 0

    def commit(self, commit: Commit) -> CommitResult:
        with self.engine.connect() as connection:
            newest = connection.execute(
                text('select epoch from partitions where topic = :t and "partition" = :p'),
                {"t": commit.topic, "p": commit.partition},
            ).scalar_one()
        try:
            result = super().commit(commit)
        except Fenced:
            self.fenced += commit.epoch != newest
            raise
        assert commit.epoch == newest, "an owner that had lost its partition wrote"
        if self.lose_answers > 0 and not result.repeated:
            self.lose_answers -= 1
            raise OperationalError(
                "commit", {}, sqlite3.OperationalError("gone"), connection_invalidated=True
            )
        return result

    def weather(self, *_: object) -> None:
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in <= 0:
                self.dies_in = None
                raise Dead
        if self.away_for > 0:
            self.away_for -= 1
            raise OperationalError("any", {}, sqlite3.OperationalError("gone"), connection_invalidated=True)


@dataclass
class Member:
    """One daemon: its own connections, source, memory and monotonic clock."""

    ledger: WatchedLedger
    source: GroupSource
    pipeline: Pipeline
    clock: ManualClock

    def end(self) -> int:
        """Everything is gone; returns how often it was refused as a former owner."""
        self.ledger.engine.dispose()
        return self.ledger.fenced


def member(
    url: str, owner: str, clock: ManualClock, *, logs: list[list[bytes]] = LOGS, hold_s: float = 1e6
) -> Member:
    ledger = WatchedLedger(
        connect(url), fold=make_fold(Settings()), owner=owner, revision_horizon_ms=900_000,
        reopen_ms=1_800_000, allowed_lateness_ms=10_000, hold_s=hold_s,
    )  # fmt: skip
    event.listen(ledger.engine, "before_cursor_execute", ledger.weather)
    event.listen(ledger.engine, "commit", ledger.weather)
    source = GroupSource(logs)
    parts = Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
    return Member(ledger, source, Pipeline(Settings(), parts), clock)


def read_to_the_end(one: Member, engine: Engine) -> None:
    for key in KEYS:
        one.source.give(key)
    for _ in range(400):
        one.pipeline.turn(0.0)
        one.clock.advance(1_100)
        found = {row["partition"]: row["next_offset"] for row in state(engine)}
        if all(found.get(key.partition) == one.source.length(key) for key in KEYS):
            one.ledger.fold_pending(one.clock.now_ms())
            return
    raise AssertionError("the log did not end")


def state(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(STATE)).mappings()]


def counts(engine: Engine) -> list[tuple[int, ...]]:
    found = sorted(state(engine), key=lambda r: r["partition"])
    return [(r["partition"], r["accepted"], r["rejected"], r["late"], r["duplicates"]) for r in found]


class Ownership(RuleBasedStateMachine):
    """Members, a group that moves partitions, and a database that is asked after every step."""

    make_database: ClassVar[Any]
    expected: ClassVar[dict[str, Any]]
    fenced: ClassVar[list[int]]  # writes of former owners that were refused, per ledger

    def __init__(self) -> None:
        super().__init__()
        self.url, self.drop = self.make_database()
        self.engine = connect(self.url)
        self.clock = ManualClock(START_MS + 30 * 86_400_000)
        self.names = 0
        self.members = [self.new() for _ in range(MEMBERS)]
        self.before: dict[int, dict[str, Any]] = {}
        for number, key in enumerate(KEYS):
            self.members[number].source.give(key)

    def new(self) -> Member:
        self.names += 1
        return member(self.url, f"member-{self.names}", self.clock)

    def teardown(self) -> None:
        try:
            for one in self.members:
                one.ledger.lose_answers, one.ledger.dies_in, one.ledger.away_for = 0, None, 0
            for one in self.members[1:]:
                for key in KEYS:
                    one.source.take(key)
                self.turn_of(one, 50)
            self.clock.advance(400_000)  # longer than a partition is left to the owner that took it
            read_to_the_end(self.members[0], self.engine)
            self.what_holds_at_any_moment()
            assert snapshot(self.url, VIEWS) == self.expected["rows"]
            assert counts(self.engine) == self.expected["counts"]
        finally:
            self.fenced.extend(one.end() for one in self.members)
            self.engine.dispose()
            self.drop()

    def turn_of(self, one: Member, records: int) -> None:
        try:
            one.pipeline.turn(0.0, records)
        except Dead:
            self.replace(self.members.index(one))

    def replace(self, number: int) -> None:
        """kill -9, and a new process that the group gives the same partitions."""
        old = self.members[number]
        self.fenced.append(old.end())
        self.members[number] = new = self.new()
        for key in old.source.group:
            new.source.give(key)

    @rule(number=st.integers(0, MEMBERS - 1), turns=st.integers(1, 6), records=st.integers(1, 120),
          step_ms=st.sampled_from([100, 1_100, 6_000]))  # fmt: skip
    def work(self, number: int, turns: int, records: int, step_ms: int) -> None:
        for _ in range(turns):
            self.turn_of(self.members[number], records)
            self.clock.advance(step_ms)

    @rule(number=st.integers(0, MEMBERS - 1))
    def kill(self, number: int) -> None:
        self.replace(number)

    @rule(number=st.integers(0, MEMBERS - 1), statements=st.integers(1, 60))
    def die_at_a_statement(self, number: int, statements: int) -> None:
        self.members[number].ledger.dies_in = statements

    @rule(number=st.integers(0, MEMBERS - 1), answers=st.integers(1, 3))
    def lose_answers(self, number: int, answers: int) -> None:
        self.members[number].ledger.lose_answers = answers

    @rule(number=st.integers(0, MEMBERS - 1), statements=st.integers(1, 8))
    def database_away(self, number: int, statements: int) -> None:
        self.members[number].ledger.away_for = statements

    @rule(key=st.sampled_from(KEYS), to=st.integers(0, MEMBERS - 1))
    def rebalance(self, key: Partition, to: int) -> None:
        for one in self.members:
            if one is not self.members[to]:
                one.source.take(key)
        self.members[to].source.give(key)

    @rule(key=st.sampled_from(KEYS), to=st.integers(0, MEMBERS - 1))
    def rebalance_behind_the_back(self, key: Partition, to: int) -> None:
        """A member that was frozen for longer than its session still believes that it owns the partition."""
        self.members[to].source.give(key)

    @rule(key=st.sampled_from(KEYS), frozen=st.integers(0, MEMBERS - 1), step=st.integers(1, MEMBERS - 1),
          records=st.integers(1, 120), turns=st.integers(1, 3))  # fmt: skip
    def freeze(self, key: Partition, frozen: int, step: int, records: int, turns: int) -> None:
        """A member stops with records in its hands; another takes over; it goes on before it is told."""
        self.members[frozen].source.give(key)
        self.turn_of(self.members[frozen], records)
        self.turn_of(self.members[frozen], records)
        to = (frozen + step) % MEMBERS
        self.members[to].source.give(key)
        for _ in range(turns):
            self.turn_of(self.members[to], records)
        self.clock.advance(1_100)
        self.turn_of(self.members[frozen], records)
        self.members[frozen].source.take(key)

    @rule(number=st.integers(0, MEMBERS - 1))
    def leave(self, number: int) -> None:
        one = self.members[number]
        with contextlib.suppress(Dead):
            one.pipeline.leave()
        self.replace(number)

    @invariant()
    def what_holds_at_any_moment(self) -> None:
        for row in state(self.engine):
            before = self.before.get(row["partition"], {})
            assert row["records"] == (row["next_offset"] or 0), "an offset counts twice or not at all"
            assert row["records"] == sum(row[n] for n in ("accepted", "rejected", "late", "duplicates"))
            if row["next_offset"] is not None:
                assert row["restart_offset"] <= row["next_offset"]
            for name in ("epoch", "next_offset", "restart_offset", "watermark_ms"):
                old = before.get(name)
                assert old is None or (row[name] is not None and row[name] >= old), f"{name} went back"
            self.before[row["partition"]] = row


def undisturbed(url: str, logs: list[list[bytes]] = LOGS) -> dict[str, Any]:
    engine = connect(url)
    one = member(url, "alone", ManualClock(START_MS + 30 * 86_400_000), logs=logs)
    read_to_the_end(one, engine)
    told = counts(engine)
    one.end()
    engine.dispose()
    taken = snapshot(url, VIEWS)
    assert len(taken["alert_history"]) > len(taken["incident_history"]) > 0 and taken["rejected_records"]
    return {"rows": taken, "counts": told}


def check(make_database: Any, examples: int) -> None:
    url, drop = make_database()
    try:
        expected = undisturbed(url)
    finally:
        drop()
    fenced: list[int] = []
    names = {"make_database": staticmethod(make_database), "expected": expected, "fenced": fenced}
    machine = type("Machine", (Ownership,), names)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )  # fmt: skip
    assert sum(fenced) > 0


def test_whatever_happens_to_its_owners_a_partition_is_written_once_on_sqlite() -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty, numbers = Path(folder) / "empty.db", iter(range(1 << 30))
        engine = connect(f"sqlite:///{empty}")
        upgrade(engine)
        engine.dispose()

        def make() -> tuple[str, Any]:
            path = Path(folder) / f"{next(numbers)}.db"
            shutil.copy(empty, path)
            return f"sqlite:///{path}", lambda: path.unlink()

        check(make, 25)


@pytest.mark.postgres
def test_whatever_happens_to_its_owners_a_partition_is_written_once_on_postgresql(
    postgres_url: str, template: str
) -> None:
    def make() -> tuple[str, Any]:
        url = services.create_database(postgres_url, template)
        return url, lambda: services.drop_database(postgres_url, url)

    check(make, 8)


@pytest.fixture
def template(postgres_database: str) -> str:
    engine = connect(postgres_database)
    upgrade(engine)
    engine.dispose()
    return postgres_database.rpartition("/")[2]
