"""Alertmanager, the real one: what it keeps, what it is told again, and what it passes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from monitor.channels.alertmanager import NO_TIME, alerts, api_url, webhook_body
from monitor.channels.base import Outcome
from monitor.channels.notice import read
from monitor.clock import SystemClock, rfc3339
from monitor.config import ChannelSettings, DeliverySettings, Settings
from monitor.delivery import DeliveryWorker, ResendAt, decide_resend
from monitor.incidents import make_fold
from storage import queries
from storage.engine import connect, upgrade
from storage.ledger import Ledger
from storage.outbox import Outbox
from storage.types import AlertTransition, Claim
from tests import services
from tests.notices import KINDS, stored
from tests.receivers import Hook, hook, wait_for
from tests.storage_kit import MINUTE_MS, make_alert, make_commit, make_series

SERIES = 'chat "large"/v1'


@pytest.fixture(scope="module")
def passed_on() -> Iterator[Hook]:
    """The receiver behind Alertmanager."""
    with hook(200) as server:
        yield server


@pytest.fixture(scope="module")
def alertmanager(passed_on: Hook) -> Iterator[services.Alertmanager]:
    service = services.Alertmanager(webhook_url=passed_on.url).start()
    yield service
    service.stop()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = connect(f"sqlite:///{tmp_path / 'am.db'}")
    upgrade(made)
    yield made
    made.dispose()


def configure(url: str, resend_s: float = 1.0) -> Settings:
    channel = ChannelSettings(type="alertmanager", url=url, allow_private=True, resend_s=resend_s)
    delivery = DeliverySettings(timeout_s=5, backoff_initial_s=0.1, backoff_max_s=0.3)
    return Settings(channels={"am": channel}, delivery=delivery)


class Log:
    """One partition whose commits bring transitions."""

    def __init__(self, engine: Engine, config: Settings) -> None:
        self.ledger = Ledger(
            engine, fold=make_fold(config), owner="t", revision_horizon_ms=900_000, reopen_ms=1_800_000
        )
        self.claim: Claim = self.ledger.claim("logs", 0, now_ms=1)
        self.offset: int | None = None
        self.start_ms = SystemClock().now_ms() // MINUTE_MS * MINUTE_MS - 30 * MINUTE_MS

    def take(self, minute: int, kind: str, **changes: Any) -> None:
        at_ms = self.start_ms + minute * MINUTE_MS
        row = make_alert(SERIES, self.start_ms, **changes)
        old, new = self.offset, (self.offset or 0) + 1
        self.ledger.commit(
            make_commit(
                self.claim,
                old,
                new,
                watermark_ms=at_ms + MINUTE_MS,
                series=[make_series(SERIES)] if old is None else [],
                transitions=[AlertTransition(at_ms, kind, row)],
            )
        )
        self.offset = new


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[[Settings], DeliveryWorker]]:
    workers: list[DeliveryWorker] = []

    def make(config: Settings) -> DeliveryWorker:
        worker = DeliveryWorker(Outbox(engine), config, SystemClock(), owner=f"w{len(workers)}")
        workers.append(worker)
        worker.start()
        return worker

    yield make
    for worker in workers:
        worker.stop()


def active(url: str) -> list[dict[str, Any]]:
    with httpx2.Client(trust_env=False) as client:
        found: list[dict[str, Any]] = client.get(f"{url}/api/v2/alerts?active=true").json()
    return found


def test_an_incident_is_one_alert_told_again_while_it_fires_and_resolved_after_a_restart(
    engine: Engine,
    alertmanager: services.Alertmanager,
    passed_on: Hook,
    start: Callable[[Settings], DeliveryWorker],
) -> None:
    config, url = configure(alertmanager.url), alertmanager.url
    log = Log(engine, config)
    log.take(1, "fired", severity="warning", summary="p95 <b>high</b>")
    worker = start(config)
    wait_for(lambda: len(active(url)) == 1)
    first = active(url)[0]
    incident_id = queries.incidents(engine)[0]["incident_id"]
    assert first["labels"] == {
        "alertname": "InferwatchIncident",
        "incident_id": incident_id,
        "severity": "warning",
        "model": 'chat "large"',
    }
    assert first["startsAt"].startswith(rfc3339(log.start_ms)[:-1])
    assert first["annotations"]["summary"] == "p95 <b>high</b>"

    wait_for(lambda: active(url)[0]["updatedAt"] > first["updatedAt"])  # told again
    assert active(url)[0]["endsAt"] > first["endsAt"]

    log.take(3, "updated", severity="critical")
    worker.wake()
    wait_for(lambda: [a["labels"]["severity"] for a in active(url)] == ["critical"])

    alertmanager.kill()  # and with it all it knew
    alertmanager.start()
    wait_for(lambda: [a["labels"]["severity"] for a in active(url)] == ["critical"])

    worker.stop()
    log.take(9, "resolved", status="resolved", severity="critical")
    assert len(active(url)) == 1
    start(config)
    wait_for(lambda: active(url) == [])
    wait_for(lambda: "resolved" in [json.loads(body)["status"] for _, body in passed_on.requests])
    wait_for(lambda: {row["status"] for row in queries.deliveries(engine)} == {"delivered"})
    sent = queries.deliveries(engine)
    assert [row["attempts"] for row in sent] == [1, 1, 1], "a repetition is no further attempt"
    assert all(row["resend_at"] is None for row in sent if row["event"] == "incident.resolved")


def test_what_we_send_ourselves_has_the_shape_of_what_alertmanager_sends(
    engine: Engine,
    alertmanager: services.Alertmanager,
    passed_on: Hook,
    start: Callable[[Settings], DeliveryWorker],
) -> None:
    before = len(passed_on.requests)
    log = Log(engine, configure(alertmanager.url, resend_s=60))
    log.take(1, "fired")
    start(configure(alertmanager.url, resend_s=60))
    wait_for(lambda: len(passed_on.requests) > before)
    theirs = json.loads(passed_on.requests[-1][1])
    (row,) = queries.deliveries(engine)
    claimed = stored("incident.opened", alerts=[])
    ours = json.loads(webhook_body(claimed, "hook", "https://watch.example.org"))
    assert row["status"] in ("claimed", "delivered")
    assert (set(ours), set(ours["alerts"][0])) == (set(theirs), set(theirs["alerts"][0]))
    for key, value in theirs.items():
        assert type(ours[key]) is type(value), key
    for key, value in theirs["alerts"][0].items():
        assert type(ours["alerts"][0][key]) is type(value), key
    assert (ours["version"], theirs["version"]) == ("4", "4")
    assert ours["alerts"][0]["endsAt"] == theirs["alerts"][0]["endsAt"] == NO_TIME


@pytest.mark.parametrize("event", [*KINDS, "test"])
def test_alertmanager_takes_every_kind_of_news(alertmanager: services.Alertmanager, event: str) -> None:
    with httpx2.Client(trust_env=False) as client:
        answer = client.post(
            api_url(alertmanager.url), json=alerts(read(stored(event), "https://w.example.org"))
        )
    assert answer.status_code == 200, answer.text


def test_a_firing_alert_has_no_end_and_what_was_less_severe_ends() -> None:
    found = alerts(read(stored("incident.updated", severity="critical")))
    assert [a["labels"]["severity"] for a in found] == ["critical", "major", "warning"]
    assert [a.get("endsAt") for a in found] == [None, "2026-01-31T12:10:00Z", "2026-01-31T12:10:00Z"]
    over = alerts(read(stored("incident.resolved", severity="major")))
    assert [a["endsAt"] for a in over] == ["2026-01-31T12:09:00Z"] * 2
    names = {a["labels"]["incident_id"] for a in found + over}
    assert len(names) == 1


def test_the_address_may_hold_the_path_or_not() -> None:
    for url in ("http://am:9093", "http://am:9093/", "http://am:9093/api/v2/alerts"):
        assert api_url(url) == "http://am:9093/api/v2/alerts"
    assert api_url("http://am/prefix") == "http://am/prefix/api/v2/alerts"


def test_a_repetition_that_fails_waits_for_the_next_turn() -> None:
    for outcome, reason in (
        (Outcome(200), "resent"),
        (Outcome(500), "not_resent"),
        (Outcome(410), "not_resent"),
        (Outcome(error="timeout"), "timeout"),
    ):
        assert decide_resend(outcome, 1_000, 60.0) == ResendAt(61_000, reason)
    assert decide_resend(Outcome(error="stopped"), 1_000, 60.0) == ResendAt(1_000, "stopped")


def test_only_the_newest_of_an_open_incident_is_sent_again_and_an_end_waits_for_it(engine: Engine) -> None:
    config = configure("http://127.0.0.1:9")
    log, outbox = Log(engine, config), Outbox(engine)
    log.take(1, "fired", severity="warning")
    (first,) = outbox.claim("me", 1 << 50, 10, 1_000)
    assert outbox.delivered(first.delivery_id, "me", 10, resend_at_ms=20)
    assert outbox.claim_resends("me", 19, 10, 1_000) == []
    (again,) = outbox.claim_resends("me", 20, 10, 1_000)
    assert (again.delivery_id, again.delivered_at_ms, again.payload) == (first.delivery_id, 10, first.payload)
    assert outbox.claim_resends("other", 21, 10, 1_000) == []
    log.take(9, "resolved", status="resolved")
    assert outbox.claim("me", 1_000, 10, 1_000) == [], "the end waits until the repetition is through"
    assert outbox.resent(first.delivery_id, "me", resend_at_ms=30, error=None)
    assert outbox.claim_resends("me", 40, 10, 1_000) == [], "it is over"
    (end,) = outbox.claim("me", 1 << 50, 10, 1_000)
    assert end.event == "incident.resolved"


def test_a_repetition_whose_sender_died_is_taken_over_when_its_lease_ends(engine: Engine) -> None:
    log, outbox = Log(engine, configure("http://127.0.0.1:9")), Outbox(engine)
    log.take(1, "fired")
    (first,) = outbox.claim("me", 1 << 50, 10, 1_000)
    outbox.delivered(first.delivery_id, "me", 10, resend_at_ms=20)
    assert len(outbox.claim_resends("dead", 20, 10, 1_000)) == 1
    (again,) = outbox.claim("heir", 1_020, 10, 1_000)
    assert again.delivered_at_ms == 10
