"""The outbox: in order inside (incident, channel), leased, never lost; a state machine says so."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Engine, text

from storage import folding
from storage.engine import connect, upgrade
from storage.outbox import Outbox
from storage.types import IncidentChanges, OutboxRow

LEASE_MS = 1_000


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'outbox.db'}"
    else:
        url = request.getfixturevalue("postgres_database")
    engine = connect(url)
    upgrade(engine)
    yield engine
    engine.dispose()


def put(engine: Engine, incident: str, sequence: int, channel: str = "hook", at_ms: int = 0) -> str:
    name = f"{incident}-{channel}-{sequence}"
    row = OutboxRow(name, incident, sequence, "incident.updated", channel, '{"a":1}', at_ms)
    with engine.begin() as connection:
        folding.write_changes(connection, IncidentChanges([], [], [], [row]))
    return name


def claimed(outbox: Outbox, now_ms: int, owner: str = "me", limit: int = 100) -> list[str]:
    return [d.delivery_id for d in outbox.claim(owner, now_ms, limit, LEASE_MS)]


def test_an_open_goes_before_its_resolve_and_channels_do_not_wait_for_each_other(engine: Engine) -> None:
    outbox = Outbox(engine)
    first, second, other = put(engine, "i", 1), put(engine, "i", 2), put(engine, "i", 2, "slack")
    assert set(claimed(outbox, 10)) == {first, other} and claimed(outbox, 10) == []
    assert outbox.failed(first, "me", retry_at_ms=500, error="503\0")
    assert claimed(outbox, 499) == []
    (again,) = outbox.claim("me", 500, 10, LEASE_MS)
    assert (again.delivery_id, again.attempts, again.first_attempt_at_ms) == (first, 1, 10)
    assert outbox.dead(first, "me", 500, "gave up") and claimed(outbox, 500) == [second]
    assert outbox.retry(first, 600) and not outbox.retry(second, 600)


def test_an_expired_lease_passes_on_and_the_old_holder_is_not_heard(engine: Engine) -> None:
    outbox = Outbox(engine)
    name = put(engine, "i", 1)
    assert claimed(outbox, 0, "a") == [name] and outbox.next_due_ms() == LEASE_MS
    assert claimed(outbox, LEASE_MS - 1, "b") == [] and claimed(outbox, LEASE_MS, "b") == [name]
    assert not outbox.delivered(name, "a", 1_100) and outbox.delivered(name, "b", 1_100)
    assert outbox.next_due_ms() is None


def test_a_disabled_channel_gives_up_what_waits_and_what_comes(engine: Engine) -> None:
    outbox = Outbox(engine)
    put(engine, "i", 1)
    kept = put(engine, "i", 1, "slack")
    assert outbox.disable_channel("hook", 5, "410 Gone") == 1
    put(engine, "i", 2)
    assert claimed(outbox, 10) == [kept] and outbox.disabled_channels() == {"hook": "410 Gone"}
    outbox.enable_channel("hook")
    assert claimed(outbox, 10) == [] and claimed(outbox, 10, limit=1) == []
    assert claimed(outbox, 20) == [] and put(engine, "i", 3) in claimed(outbox, 20)


def test_claims_at_the_same_time_share_nothing(engine: Engine) -> None:
    names = {put(engine, f"i{i}", 1) for i in range(40)}
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda n: claimed(Outbox(engine), 0, f"o{n}", limit=15), range(4)))
    found = [name for part in parts for name in part]
    assert len(found) == len(set(found)) and set(found) | set(claimed(Outbox(engine), 0)) == names


class OutboxMachine(RuleBasedStateMachine):
    """Two owners who send, fail, die and wake up late; the model knows who holds which lease."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.engine = connect(f"sqlite:///{self.directory.name}/o.db")
        upgrade(self.engine)
        self.outbox = Outbox(self.engine)
        self.now_ms = 0
        self.sequences: dict[tuple[str, str], int] = {}
        self.order: dict[tuple[str, str], list[str]] = {}
        self.leases: dict[str, tuple[str, int]] = {}  # delivery -> newest holder, end
        self.done: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()
            self.directory.cleanup()

    @rule(incident=st.sampled_from("ab"), channel=st.sampled_from("xy"))
    def add(self, incident: str, channel: str) -> None:
        place = (incident, channel)
        self.sequences[place] = self.sequences.get(place, 0) + 1
        name = put(self.engine, incident, self.sequences[place], channel, self.now_ms)
        self.order.setdefault(place, []).append(name)

    @rule(owner=st.sampled_from("pq"), limit=st.integers(1, 3))
    def claim(self, owner: str, limit: int) -> None:
        for delivery in self.outbox.claim(owner, self.now_ms, limit, LEASE_MS):
            name = delivery.delivery_id
            assert name not in self.done
            if name in self.leases:
                assert self.leases[name][1] <= self.now_ms, "claimed while another lease holds"
            line = self.order[delivery.incident_id, delivery.channel]
            assert set(line[: line.index(name)]) <= self.done, "overtook an earlier notification"
            self.leases[name] = (owner, self.now_ms + LEASE_MS)

    @rule(owner=st.sampled_from("pq"), how=st.sampled_from(["delivered", "failed", "dead"]), data=st.data())
    def answer(self, owner: str, how: str, data: st.DataObject) -> None:
        names = sorted(name for line in self.order.values() for name in line)
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        if how == "delivered":
            heard = self.outbox.delivered(name, owner, self.now_ms)
        elif how == "dead":
            heard = self.outbox.dead(name, owner, self.now_ms, "e")
        else:
            heard = self.outbox.failed(name, owner, retry_at_ms=self.now_ms + 300, error="e")
        assert heard == (name in self.leases and self.leases[name][0] == owner)
        if heard:
            del self.leases[name]
            if how != "failed":
                self.done.add(name)

    @rule(step_ms=st.sampled_from([1, 300, LEASE_MS]))
    def wait(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "engine"):
            return
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT delivery_id FROM deliveries WHERE status IN ('pending', 'claimed')")
            )
            waiting = {row[0] for row in rows}
        assert waiting == {name for line in self.order.values() for name in line} - self.done
        assert (self.outbox.next_due_ms() is None) == (not waiting)


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
