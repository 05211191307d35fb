"""What people do to an incident reaches the channels that have a word for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from monitor.clock import SystemClock
from monitor.config import ChannelSettings, DeliverySettings, Settings
from monitor.delivery import DeliveryWorker
from monitor.people import people
from storage import queries
from storage.engine import connect, upgrade
from storage.outbox import Outbox
from tests.notices import ROUTING_KEY
from tests.receivers import Hook, hook
from tests.test_alertmanager import Log


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = connect(f"sqlite:///{tmp_path / 'people.db'}")
    upgrade(made)
    yield made
    made.dispose()


def configure(pager: Hook, team: Hook) -> Settings:
    return Settings(
        delivery=DeliverySettings(timeout_s=5, backoff_initial_s=0.05, backoff_max_s=0.1),
        channels={
            "pager": ChannelSettings(
                type="pagerduty", url=pager.url, secret=SecretStr(ROUTING_KEY), allow_private=True
            ),
            "team": ChannelSettings(url=team.url, allow_private=True),
        },
    )


def test_pagerduty_hears_of_opening_acknowledgement_and_end_under_one_key(engine: Engine) -> None:
    with hook(202) as pager, hook(500, 200) as team:
        settings = configure(pager, team)
        log = Log(engine, settings)
        log.take(1, "fired")
        incident_id = queries.incidents(engine)[0]["incident_id"]
        acting, now_ms = people(engine, settings), SystemClock().now_ms()
        acting.note(incident_id, "looking", by="ada", now_ms=now_ms)
        acting.acknowledge(incident_id, by="ada", now_ms=now_ms)
        acting.acknowledge(incident_id, by="bob", now_ms=now_ms)
        acting.resolve(incident_id, by="ada", now_ms=now_ms)
        worker = DeliveryWorker(Outbox(engine), settings, SystemClock(), owner="t")
        worker.start()
        for _ in range(100):  # a failed attempt waits for its next one
            worker.drain(5)
            if {row["status"] for row in queries.deliveries(engine)} == {"delivered"}:
                break
        worker.stop()
        events = [json.loads(body) for _, body in pager.requests]
        told = [json.loads(body)["type"] for _, body in team.requests]
    assert [event["event_action"] for event in events] == ["trigger", "acknowledge", "resolve"]
    assert {event["dedup_key"] for event in events} == {incident_id}
    assert told == ["incident.opened", "incident.opened", "incident.resolved"], "the first attempt failed"
    acknowledged = [row for row in queries.deliveries(engine) if row["event"] == "incident.acknowledged"]
    assert [row["channel"] for row in acknowledged] == ["pager"]


def test_a_channel_that_asks_for_acknowledgements_gets_who_it_was(engine: Engine) -> None:
    asked = ChannelSettings(url="http://127.0.0.1:9", events=["incident.opened", "incident.acknowledged"])
    settings = Settings(channels={"asked": asked})
    log = Log(engine, settings)
    log.take(1, "fired")
    incident_id = queries.incidents(engine)[0]["incident_id"]
    people(engine, settings).acknowledge(incident_id, by="ada", now_ms=SystemClock().now_ms())
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT event, payload FROM deliveries ORDER BY sequence").all()
    assert [row.event for row in rows] == ["incident.opened", "incident.acknowledged"]
    first, second = (json.loads(row.payload)["data"] for row in rows)
    assert (second["acknowledged_by"], second["status"]) == ("ada", "acknowledged")
    assert first["group"] == second["group"] != {}
