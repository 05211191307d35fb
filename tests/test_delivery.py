"""The delivery worker: its decisions, and the whole way from outbox row to a real receiver."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from monitor.channels.base import Outcome
from monitor.clock import SystemClock
from monitor.config import ChannelSettings, DeliverySettings, Settings
from monitor.delivery import (
    MAX_RETRY_AFTER_S,
    Delivered,
    DeliveryWorker,
    DisableChannel,
    GiveUp,
    RetryAt,
    backoff_s,
    decide_attempt,
    retry_after_s,
)
from storage import schema
from storage.engine import connect, upgrade
from storage.folding import write_changes
from storage.outbox import Outbox
from storage.schema import table
from storage.types import ClaimedDelivery, IncidentChanges, OutboxRow
from tests.receivers import drip_headers, hang, hook, wait_for

NOW_MS = 1_767_225_600_000
SETTINGS = DeliverySettings(backoff_initial_s=2, backoff_max_s=600, max_age_h=72)
DELIVERIES = table(schema.DeliveryTable)


def claimed(attempts: int = 0, first_ms: int | None = None) -> ClaimedDelivery:
    return ClaimedDelivery("d", "i", "incident.opened", "c", "{}", attempts, 0, first_ms)


# ------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("outcome", "kind", "reason"),
    [
        (Outcome(200), Delivered, "accepted"),
        (Outcome(204), Delivered, "accepted"),
        (Outcome(302), RetryAt, "redirect"),
        (Outcome(400), RetryAt, "client_error"),
        (Outcome(404, retry_after="9"), RetryAt, "client_error"),
        (Outcome(410), DisableChannel, "gone"),
        (Outcome(429, retry_after="9"), RetryAt, "retry_after"),
        (Outcome(429, retry_after="soon"), RetryAt, "client_error"),
        (Outcome(503, retry_after="Thu, 01 Jan 2026 00:01:00 GMT"), RetryAt, "retry_after"),
        (Outcome(500), RetryAt, "server_error"),
        (Outcome(error="timeout"), RetryAt, "timeout"),
        (Outcome(error="target_refused"), RetryAt, "target_refused"),
    ],
)
def test_decisions(outcome: Outcome, kind: type, reason: str) -> None:
    decision = decide_attempt(outcome, claimed(), NOW_MS, SETTINGS)
    assert (type(decision), decision.reason) == (kind, reason)


def test_retry_after_is_honoured_and_capped() -> None:
    assert retry_after_s("120", NOW_MS) == 120
    assert retry_after_s("Thu, 01 Jan 2026 00:01:00 GMT", NOW_MS) == 60
    assert retry_after_s("Wed, 31 Dec 2025 00:01:00 GMT", NOW_MS) == 0
    assert retry_after_s("9" * 400, NOW_MS) == MAX_RETRY_AFTER_S
    for nonsense in (None, "", "-5", "1.5", "soon", "Thu, 99 Foo 2026"):
        assert retry_after_s(nonsense, NOW_MS) is None
    asked = decide_attempt(Outcome(429, retry_after="120"), claimed(), NOW_MS, SETTINGS)
    assert asked == RetryAt(NOW_MS + 120_000, "retry_after")


@given(st.text(max_size=30), st.integers(0, 100))
def test_backoff_grows_within_bounds_and_is_reproducible(delivery_id: str, attempts: int) -> None:
    wait_s = backoff_s(delivery_id, attempts, SETTINGS)
    assert wait_s == backoff_s(delivery_id, attempts, SETTINGS)
    plain_s = min(2.0 * 2 ** min(attempts, 40), 600.0)
    assert 0.75 * plain_s <= wait_s <= min(1.25 * plain_s, 600.0)


@given(st.text(max_size=40))
def test_any_retry_after_header_is_survived(header: str) -> None:
    asked_s = retry_after_s(header, NOW_MS)
    assert asked_s is None or 0 <= asked_s <= MAX_RETRY_AFTER_S


def test_an_old_notification_is_given_up_counted_from_its_first_attempt() -> None:
    long_ago = NOW_MS - 73 * 3_600_000
    assert decide_attempt(Outcome(500), claimed(9, long_ago), NOW_MS, SETTINGS) == GiveUp("too_old")
    assert isinstance(decide_attempt(Outcome(200), claimed(9, long_ago), NOW_MS, SETTINGS), Delivered)
    assert isinstance(decide_attempt(Outcome(500), claimed(), NOW_MS, SETTINGS), RetryAt)


# ------------------------------------------------------------ end to end, real parts


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = connect(f"sqlite:///{tmp_path / 'outbox.db'}")
    upgrade(made)
    yield made
    made.dispose()


def put(engine: Engine, *rows: OutboxRow) -> None:
    with engine.begin() as connection:
        write_changes(connection, IncidentChanges([], [], [], list(rows)))


def row(number: int, channel: str = "c", incident: str = "i1", event: str = "incident.opened") -> OutboxRow:
    return OutboxRow(f"{channel}-{incident}-{number}", incident, number, event, channel, '{"a":1}', 0)


def state(engine: Engine) -> dict[str, tuple[str, int, str | None]]:
    with engine.connect() as connection:
        return {
            r.delivery_id: (r.status, r.attempts, r.last_error)
            for r in connection.execute(select(DELIVERIES))
        }


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., DeliveryWorker]]:
    """start(c=url, ...) runs a worker on these channels until the test ends."""
    workers: list[DeliveryWorker] = []

    def make(timeout_s: float = 2.0, owner: str = "test", **urls: str) -> DeliveryWorker:
        worker = make_worker(engine, timeout_s, owner, urls)
        worker.start()
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.stop()


def make_worker(engine: Engine, timeout_s: float, owner: str, urls: dict[str, str]) -> DeliveryWorker:
    settings = Settings(
        delivery=DeliverySettings(timeout_s=timeout_s, backoff_initial_s=0.05, backoff_max_s=0.2),
        channels={name: ChannelSettings(url=url, allow_private=True) for name, url in urls.items()},
    )
    return DeliveryWorker(Outbox(engine), settings, SystemClock(), owner=owner)


Start = Callable[..., DeliveryWorker]


def test_everything_arrives_once_and_in_order(engine: Engine, start: Start) -> None:
    rows = [row(n, incident=f"i{i}") for i in range(10) for n in range(1, 4)]
    put(engine, *rows)
    with hook(200) as server:
        assert start(c=server.url).drain(20)
        assert sorted(server.ids) == sorted(r.delivery_id for r in rows)
        for i in range(10):
            own = [name for name in server.ids if f"-i{i}-" in name]
            assert own == [f"c-i{i}-{n}" for n in (1, 2, 3)]
    assert {status for status, _, _ in state(engine).values()} == {"delivered"}


def test_failures_are_tried_again_under_the_same_id(engine: Engine, start: Start) -> None:
    put(engine, row(1), row(2, event="incident.resolved"))
    with hook(500, 404, (302, {"location": "/elsewhere"}), (429, {"retry-after": "0"}), 200) as server:
        start(c=server.url)
        wait_for(lambda: len(server.ids) >= 6)
        assert server.ids == ["c-i1-1"] * 5 + ["c-i1-2"], "the end waits for the open"
        wait_for(lambda: {s for s, _, _ in state(engine).values()} == {"delivered"})
    assert state(engine)["c-i1-1"] == ("delivered", 5, None)


def test_gone_disables_the_channel(engine: Engine, start: Start) -> None:
    put(engine, row(1), row(1, incident="i2"), row(2))
    with hook(410) as server:
        start(c=server.url)
        wait_for(lambda: {s for s, _, _ in state(engine).values()} == {"dead"})
    assert Outbox(engine).disabled_channels() == {"c": "gone: HTTP 410"}


def test_a_channel_that_is_not_configured_is_given_up(engine: Engine, start: Start) -> None:
    put(engine, row(1, channel="removed"))
    start()
    wait_for(lambda: state(engine)["removed-i1-1"][0] == "dead")
    assert state(engine)["removed-i1-1"][2] == "no_such_channel"


@pytest.mark.parametrize("bad", [hang(5), drip_headers])
def test_a_slow_receiver_holds_up_nobody_else(engine: Engine, start: Start, bad: Any) -> None:
    put(engine, *(row(1, "slow", f"i{n}") for n in range(60)))
    put(engine, *(row(1, "good", f"i{n}") for n in range(40)))
    with hook(bad) as slow, hook(200) as good:
        worker = start(timeout_s=1.0, slow=slow.url, good=good.url)
        wait_for(lambda: len(set(good.ids)) == 40)
        assert not any(s == "delivered" for name, (s, _, _) in state(engine).items() if "slow" in name)
        worker.stop()
    assert len(good.ids) == 40


def test_new_rows_are_sent_when_the_worker_is_woken(engine: Engine, start: Start) -> None:
    with hook(200) as server:
        worker = start(c=server.url)
        assert worker.drain(5)
        put(engine, row(1))
        worker.wake()
        wait_for(lambda: server.ids == ["c-i1-1"])


def test_stopping_breaks_off_and_the_next_worker_sends_again(engine: Engine, start: Start) -> None:
    put(engine, row(1))
    with hook(hang(5), 200) as server:
        worker = start(timeout_s=30.0, c=server.url)
        wait_for(lambda: len(server.ids) == 1)
        worker.stop()
        assert state(engine)["c-i1-1"] == ("pending", 1, "stopped")
        start(owner="next", c=server.url)
        wait_for(lambda: state(engine)["c-i1-1"][0] == "delivered")
        assert server.ids == ["c-i1-1"] * 2


def _run_until_killed(url: str, target: str) -> None:
    worker = make_worker(connect(url), 20.0, "first", {"c": target})
    worker.start()
    threading.Event().wait()


def test_a_kill_between_send_and_mark_sends_again_under_the_same_id(engine: Engine, start: Start) -> None:
    """The process dies while the receiver has the message and the database does not know."""
    put(engine, row(1))
    victim: list[int] = []
    known = threading.Event()

    def kill_then_answer(handler: Any) -> None:
        known.wait(20)
        os.kill(victim[0], 9)
        handler.send_response(200)
        handler.end_headers()

    with hook(kill_then_answer, 200) as server:
        url = engine.url.render_as_string(hide_password=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_run_until_killed, args=(url, server.url), daemon=True
        )
        process.start()
        assert process.pid is not None
        victim.append(process.pid)
        known.set()
        process.join(30)
        assert process.exitcode == -9
        assert state(engine)["c-i1-1"][0] == "claimed"
        _end_leases(engine)
        start(owner="second", c=server.url)
        wait_for(lambda: state(engine)["c-i1-1"][0] == "delivered")
        assert server.ids == ["c-i1-1"] * 2


def _end_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(DELIVERIES.update().values(due_at_ms=0))


class Away:
    """An outbox whose database answers only every other time."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox, self.calls = outbox, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.outbox, name)

        def call(*args: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls % 2:
                raise ConnectionError("the database is away")
            return found(*args, **more)

        return call


def test_a_database_that_goes_away_does_not_end_the_worker(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.delivery.ERROR_WAIT_S", 0.02)
    put(engine, row(1))
    with hook(200) as server:
        worker = make_worker(engine, 1.0, "test", {"c": server.url})
        worker._outbox = Away(Outbox(engine))
        worker.start()
        wait_for(lambda: "c-i1-1" in server.ids)
        _end_leases(engine)  # where the mark was lost
        deadline = time.monotonic() + 15
        while state(engine)["c-i1-1"][0] != "delivered" and time.monotonic() < deadline:
            _end_leases(engine)
            worker.wake()
            time.sleep(0.05)
        worker.stop()
    assert state(engine)["c-i1-1"][0] == "delivered"
    assert set(server.ids) == {"c-i1-1"}
