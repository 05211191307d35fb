"""A source that stalls is an incident of its own, and no series is called silent for it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from detectors.base import SeriesStates
from detectors.types import ScoreBatch, WindowBatch
from monitor import metrics
from monitor.claims import Parts
from monitor.clock import ManualClock, SystemClock
from monitor.config import Settings, SourceSettings, WindowSettings
from monitor.daemon import health
from monitor.models import FixedModel
from monitor.pipeline import Pipeline
from monitor.sources.base import Event, Partition, Progress
from monitor.sources.batches import cut, pack
from monitor.sources.memory import MemorySource
from monitor.sources.opening import kafka_source
from monitor.stalls import Silence
from monitor.watchdog import Watchdog
from storage.engine import connect, upgrade
from storage.facts import Facts
from tests import services
from tests import test_ownership as ownership
from tests.daemons import rows, snapshot
from tests.logs import START_MS, lines
from tests.scorers import PlainScorer
from tests.test_pipeline import ledger_for

KEYS = [Partition("logs", 0), Partition("logs", 1)]
AFTER_S, TURN_MS, MINUTE_MS = 300.0, 5_000, 60_000
MINUTES = 60
SETTINGS = Settings(source=SourceSettings(stalled_after_s=AFTER_S), window=WindowSettings(idle_timeout_s=20))
AT_END, BEHIND, UNKNOWN = (Progress(9, end, False) for end in (9, 12, None))


@pytest.mark.parametrize(
    ("progress", "busy", "reads", "stalled"),
    [
        (AT_END, False, False, False),
        (BEHIND, False, False, True),
        (UNKNOWN, False, False, True),
        (None, False, False, True),
        (BEHIND, True, False, False),
        (BEHIND, False, True, False),
        (Progress(9, 9, True), True, False, False),
    ],
)
def test_what_a_stall_is(progress: Progress | None, busy: bool, reads: bool, stalled: bool) -> None:
    silence = Silence(0.0)
    for now_s in range(0, 400, 5):
        read_at_s = float(now_s if reads else 0)
        found = silence.look(progress, now_s, read_at_s=read_at_s, busy=busy, timeout_s=AFTER_S)
        assert found == (stalled and now_s >= AFTER_S)
    assert (silence.unsure_at_s > 0) == (progress != AT_END)
    assert not silence.look(AT_END, 400.0, read_at_s=0.0, busy=False, timeout_s=AFTER_S)


class Brokers(MemorySource):
    """Brokers that can go away: nothing comes, and nobody says where a log ends."""

    away = False

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        return [] if self.away else super().poll(0.0, max_records)

    def progress(self) -> dict[Partition, Progress]:
        found = super().progress()
        return {key: replace(p, end=None) if self.away else p for key, p in found.items()}


class Run:
    """A live log of two partitions, each minute of it given to a pipeline when its time has come."""

    def __init__(self, url: str) -> None:
        self.ledger, self.clock = ledger_for(url), ManualClock(START_MS)
        self.source, self.url = Brokers(bounded=False), url
        logs = [lines(services=2, minutes=MINUTES, per_minute=6, fault_at=None, seed=s) for s in (1, 2)]
        logs = [[line.replace(b'"svc-', b'"%d-' % i) for line in log] for i, log in enumerate(logs)]
        self.logs = [pack(key, range(len(log)), log) for key, log in zip(KEYS, logs, strict=True)]
        self.minute = 0
        self.pipeline = self.begin()

    def begin(self) -> Pipeline:
        parts = Parts(
            self.source, self.ledger, Facts(self.ledger.engine), self.clock, FixedModel(PlainScorer())
        )
        self.pipeline = Pipeline(SETTINGS, parts)
        return self.pipeline

    def restart(self) -> None:
        """The process dies and another one takes the partitions."""
        for key in KEYS:
            self.source.assign(key)
        self.begin()

    def go_on(self, minutes: int, *, produce: bool = True) -> None:
        for _ in range(minutes):
            for _ in range(MINUTE_MS // TURN_MS):
                self.pipeline.turn(0.0)
                self.clock.advance(TURN_MS)
            if produce:
                self.produce()
        self.ledger.fold_pending(self.clock.now_ms())

    def produce(self) -> None:
        for log in self.logs:
            size = len(log) // MINUTES
            self.source.add(cut(log, self.minute * size, (self.minute + 1) * size))
        self.minute += 1

    def incidents(self) -> list[dict[str, Any]]:
        return rows(self.url, "select title, status, severity, summary from incidents order by opened_at_ms")

    def about_the_source(self) -> list[dict[str, Any]]:
        return [found for found in self.incidents() if found["title"].startswith("Trouble reading")]


def undisturbed(folder: Path, *, silent_minutes: int = 0) -> Run:
    run = Run(f"sqlite:///{folder / 'undisturbed.db'}")
    run.go_on(30)
    run.go_on(silent_minutes, produce=False)
    run.go_on(10)
    return run


@pytest.mark.parametrize("dies", [False, True])
def test_brokers_that_are_away_are_one_incident_and_no_series_is_called_silent(
    tmp_path: Path, dies: bool
) -> None:
    """What was produced meanwhile is read behind it, into the windows that it belongs to."""
    run = Run(f"sqlite:///{tmp_path / 'stalled.db'}")
    run.go_on(30)
    run.source.away = True
    run.go_on(4)
    assert run.about_the_source() == []
    run.go_on(3)
    seen = health(run.pipeline, Watchdog(run.pipeline, 60.0, run.clock))
    assert seen["stalled"] == ["logs/0", "logs/1"]
    assert metrics.REGISTRY.get_sample_value("inferwatch_source_stalled_partitions") == 2
    (incident,) = run.about_the_source()
    assert (incident["status"], incident["severity"]) == ("open", "critical")
    assert incident["title"] == "Trouble reading 2 partitions"
    assert incident["summary"].startswith("logs/") and "has stalled" in incident["summary"]
    if dies:
        run.restart()
        run.go_on(2)
        assert run.about_the_source() == [incident]
    run.source.away = False
    run.go_on(3 if dies else 5)
    assert metrics.REGISTRY.get_sample_value("inferwatch_source_stalled_partitions") == 0
    assert [found["status"] for found in run.about_the_source()] == ["resolved"]
    assert not [found for found in run.incidents() if found["title"].startswith("No requests")]
    whole = snapshot(undisturbed(tmp_path).url)["window_history"]
    assert len(whole) > 100
    assert set(whole) <= set(snapshot(run.url)["window_history"])


def test_brokers_that_were_never_reached_are_told_once_in_health_log_and_metrics(tmp_path: Path) -> None:
    """Nothing is owned then, so no partition can stall. (kafka-python leaves sockets to the collector.)"""
    (port,) = services.free_ports(1)
    source = kafka_source(
        SourceSettings(
            bootstrap_servers=f"127.0.0.1:{port}", topics=["logs"], stalled_after_s=3, reader="confluent"
        )
    )
    ledger, clock = ledger_for(f"sqlite:///{tmp_path / 'never.db'}"), SystemClock()
    parts = Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
    pipeline = Pipeline(Settings(source=source.settings), parts)
    watchdog = Watchdog(pipeline, 60.0, clock)
    until_s = time.monotonic() + 20
    with capture_logs() as told:
        while not pipeline.unreachable:
            assert time.monotonic() < until_s
            pipeline.turn(0.1)
        for _ in range(3):
            pipeline.turn(0.1)
    (line,) = [line for line in told if line["event"] == "source_unreachable"]
    assert line["bootstrap_servers"] == f"127.0.0.1:{port}" and line["log_level"] == "error"
    assert float(str(health(pipeline, watchdog)["source_away_s"])) >= 3
    assert (metrics.REGISTRY.get_sample_value("inferwatch_source_away_seconds") or 0) >= 3
    source.close(1)


def test_a_topic_whose_producers_died_is_told_as_one_thing(tmp_path: Path) -> None:
    run = Run(f"sqlite:///{tmp_path / 'dead.db'}")
    run.go_on(30)
    with capture_logs() as told:
        run.go_on(4, produce=False)
        assert not run.pipeline.quiet
        run.go_on(4, produce=False)
        quiet = health(run.pipeline, Watchdog(run.pipeline, 60.0, run.clock))["quiet_s"]
        gauge = metrics.REGISTRY.get_sample_value("inferwatch_source_quiet_seconds", {"topic": "logs"})
        run.go_on(2)
    assert isinstance(quiet, dict) and list(quiet) == ["logs"] and quiet["logs"] >= AFTER_S
    assert gauge is not None and gauge >= AFTER_S
    lines_told = [line for line in told if line["event"].startswith("topic_")]
    assert [line["event"] for line in lines_told] == ["topic_quiet", "topic_has_records_again"]
    first = lines_told[0]
    assert (first["topic"], first["partitions"], first["series"]) == ("logs", 2, 4) and first["fully_read"]
    assert not run.about_the_source()  # the brokers are well, and the log is read


def test_producers_get_time_to_come_back_behind_an_outage(tmp_path: Path) -> None:
    """The log is fully read when the brokers are back; what is missing then may be on its way."""
    run = Run(f"sqlite:///{tmp_path / 'back.db'}")
    run.go_on(30)
    run.source.away = True
    run.go_on(7, produce=False)
    run.source.away = False
    for _ in range(4):
        run.pipeline.turn(0.0)
        run.clock.advance(TURN_MS)
    for _ in range(7):
        run.produce()
    run.go_on(3)
    empty = "select count(*) as n from window_history where request_count = 0"
    late = "select sum(late) as n from partitions"
    assert rows(run.url, empty)[0]["n"] == rows(run.url, late)[0]["n"] == 0
    assert not [found for found in run.incidents() if found["title"].startswith("No requests")]
    assert [found["status"] for found in run.about_the_source()] == ["resolved"]


def test_brokers_that_go_away_while_a_partition_has_no_owner_change_no_incident(tmp_path: Path) -> None:
    """The group was about to hand it to another member; one service of each partition fails at one time."""
    logs = [ownership.log_of(partition, apart=False) for partition in (2, 3)]
    counted: dict[int, int] = {}
    url = f"sqlite:///{tmp_path / 'away.db'}"
    engine, clock = connect(url), ManualClock(START_MS + 30 * 86_400_000)
    upgrade(engine)
    one = ownership.member(url, "one", clock, logs=logs, hold_s=36.0)
    one.ledger.attend(clock.now_ms())

    def turn() -> None:
        one.pipeline.turn(0.0, 60)
        clock.advance(1_100)
        one.ledger.fold_pending(clock.now_ms())

    def read(key: Partition, up_to: int) -> None:
        one.source.give(key)
        while counted.get(key.partition, 0) < up_to:
            turn()
            counted.update((row["partition"], row["next_offset"] or 0) for row in ownership.state(engine))

    read(ownership.KEYS[0], 240)
    one.source.take(ownership.KEYS[0])
    read(ownership.KEYS[1], len(logs[1]))
    waiting = rows(url, "select at_ms from alert_transitions where not folded")
    assert counted[0] < 300 and waiting
    for _ in range(2):  # an outage, and another before the partition is handed out
        for away_s in range(1, 200):
            one.source.away_for_s = float(away_s)
            turn()
        one.source.away_for_s = 0.0
        for _ in range(20):
            turn()
    ownership.read_to_the_end(one, engine)
    one.end()
    engine.dispose()
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    upgrade(connect(alone))
    expected = ownership.undisturbed(alone, logs)["rows"]
    assert expected["incident_history"]
    assert snapshot(url, ownership.VIEWS) == expected
    events = "select incident_id, revision, at_ms, kind, reason from incident_events order by 1, 2"
    assert rows(url, events) == rows(alone, events)


def test_a_partition_that_waits_for_its_turn_in_a_slow_process_is_waited_for(tmp_path: Path) -> None:
    """One poll brings both logs whole; the second is begun when the first has taken longer than `hold_s`."""
    logs = [ownership.log_of(partition, apart=False) for partition in (2, 3)]
    url = f"sqlite:///{tmp_path / 'slow.db'}"
    engine, clock = connect(url), ManualClock(START_MS + 30 * 86_400_000)
    upgrade(engine)
    one = ownership.member(url, "one", clock, logs=logs, hold_s=36.0)

    class SlowScorer(PlainScorer):
        def score(self, batch: WindowBatch, states: SeriesStates) -> ScoreBatch:
            for _ in range(4):
                clock.advance(1_000)
                one.ledger.fold_pending(clock.now_ms())
            return super().score(batch, states)

    one.pipeline.parts = replace(one.pipeline.parts, models=FixedModel(SlowScorer()))
    one.ledger.attend(clock.now_ms())
    for key in reversed(ownership.KEYS):
        one.source.give(key)
    for _ in range(3):
        one.pipeline.turn(0.0)
    ownership.read_to_the_end(one, engine)
    one.end()
    engine.dispose()
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    upgrade(connect(alone))
    ownership.undisturbed(alone, logs)
    events = "select incident_id, revision, at_ms, kind, reason from incident_events order by 1, 2"
    assert rows(url, events) == rows(alone, events) != []


@pytest.mark.parametrize("lives", [True, False])
def test_incidents_go_over_a_partition_at_rest_as_long_as_its_owner_answers(
    tmp_path: Path, lives: bool
) -> None:
    logs = [ownership.log_of(2, apart=False)[:60], ownership.log_of(3, apart=False)]
    url = f"sqlite:///{tmp_path / 'rest.db'}"
    engine, clock = connect(url), ManualClock(START_MS + 30 * 86_400_000)
    upgrade(engine)
    rests, moves = (ownership.member(url, name, clock, logs=logs, hold_s=36.0) for name in ("a", "b"))
    for one, key in ((rests, ownership.KEYS[0]), (moves, ownership.KEYS[1])):
        one.ledger.attend(clock.now_ms())
        one.source.give(key)
    for _ in range(30):
        rests.pipeline.turn(0.0)
        clock.advance(1_100)
        rests.ledger.fold_pending(clock.now_ms())
        moves.ledger.fold_pending(clock.now_ms())
    waiting = "select count(*) as n from alert_transitions where not folded"
    seen, began_ms = 0, clock.now_ms()
    while clock.now_ms() < began_ms + 60_000:
        if lives:
            rests.pipeline.turn(0.0)
        moves.pipeline.turn(0.0)
        clock.advance(1_100)
        moves.ledger.fold_pending(clock.now_ms())
        seen = max(seen, rows(url, waiting)[0]["n"])
        if seen and not rows(url, waiting)[0]["n"]:
            break
    took_s = (clock.now_ms() - began_ms) / 1_000
    rests.end()
    moves.end()
    engine.dispose()
    assert seen > 0
    assert took_s < 8.0 if lives else 36.0 <= took_s < 45.0
