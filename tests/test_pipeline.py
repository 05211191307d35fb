"""The pipeline on real storage with a plain scorer: nothing lost, nothing twice, wherever it dies."""

from __future__ import annotations

import contextlib
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from detectors.base import Scorer
from monitor import decoding
from monitor.claims import Parts
from monitor.clock import ManualClock, rfc3339
from monitor.config import Settings
from monitor.incidents import make_fold
from monitor.models import FixedModel
from monitor.partition import MAX_STARTS
from monitor.pipeline import Pipeline
from monitor.sources.base import Partition
from monitor.sources.batches import cut, pack
from monitor.sources.memory import MemorySource
from storage.engine import connect, upgrade
from storage.facts import Facts
from storage.ledger import Ledger
from storage.types import Commit, Fenced
from tests.daemons import rows, snapshot, totals
from tests.logs import BAD_LINES, START_MS, lines, with_bad_lines
from tests.scorers import PlainScorer, SlowScorer

KEY = Partition("memory", 0)
MESSAGES = with_bad_lines(lines(services=2, minutes=60, per_minute=6, fault_at=40))
YEAR_MS = 365 * 86_400_000


class Killed(BaseException):
    """The process is gone at this point."""


class DyingLedger(Ledger):
    """Dies before or after its n-th commit reaches the database."""

    commits_left = 1 << 30
    after = False

    def commit(self, commit: Commit) -> object:  # type: ignore[override]
        self.commits_left -= 1
        if self.commits_left == 0 and not self.after:
            raise Killed
        result = super().commit(commit)
        if self.commits_left == 0:
            raise Killed
        return result


def ledger_for(url: str, owner: str = "test") -> DyingLedger:
    engine = connect(url)
    upgrade(engine)
    return DyingLedger(
        engine,
        fold=make_fold(Settings()),
        owner=owner,
        revision_horizon_ms=900_000,
        reopen_ms=1_800_000,
        allowed_lateness_ms=10_000,
    )


def pipeline_for(
    ledger: Ledger, messages: list[bytes], *, batch: int = 50, scorer: Scorer | None = None
) -> tuple[Pipeline, ManualClock]:
    clock = ManualClock(START_MS + YEAR_MS // 12)
    whole = pack(KEY, range(len(messages)), messages)
    source = MemorySource(
        [cut(whole, i, min(i + batch, len(messages))) for i in range(0, len(messages), batch)]
    )
    return Pipeline(
        Settings(), Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(scorer or PlainScorer()))
    ), clock


def run_to_end(pipeline: Pipeline, clock: ManualClock, *, step_ms: int = 1_100) -> None:
    for _ in range(10_000):
        if not pipeline.turn(0.0):
            return
        clock.advance(step_ms)
    raise AssertionError("the log did not end")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}"
    run_to_end(*pipeline_for(ledger_for(url), MESSAGES))
    return url


def test_every_message_is_accounted_for(whole: str) -> None:
    found = totals(whole)
    assert found["records"] == len(MESSAGES) == found["position"]
    assert found["rejected"] == len(BAD_LINES)
    taken = snapshot(whole)
    assert len(taken["window_history"]) == 2 * 60
    assert taken["alert_history"] and taken["incident_history"]


def test_a_firing_alert_ends_with_its_newest_anomalous_window(whole: str) -> None:
    statement = "select h.window_end, max(w.window_end) as newest from alert_history h "
    statement += "join alerts a on a.alert_id = h.alert_id and a.status = 'firing' "
    statement += "join window_history w on w.series = h.series and w.is_anomalous group by h.alert_id"
    found = rows(whole, statement)
    assert found
    assert all(row["window_end"] == row["newest"] for row in found)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deaths=st.lists(st.tuples(st.integers(1, 25), st.booleans(), st.integers(1, 400)), max_size=4),
    batch=st.integers(1, 400),
    ahead=st.sampled_from([1, 100, decoding.AHEAD_ROWS]),
)
def test_deaths_and_batch_sizes_change_nothing(
    whole: str,
    tmp_path_factory: pytest.TempPathFactory,
    deaths: list[tuple[int, bool, int]],
    batch: int,
    ahead: int,
) -> None:
    """Nor does it whether batches are decoded ahead, from so many messages on."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dying') / 'dying.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "AHEAD_ROWS", ahead)
        for commits, after, other_batch in deaths:
            ledger = ledger_for(url)
            ledger.commits_left, ledger.after = commits, after
            with contextlib.suppress(Killed):
                run_to_end(*pipeline_for(ledger, MESSAGES, batch=other_batch))
            ledger.engine.dispose()
        run_to_end(*pipeline_for(ledger_for(url), MESSAGES, batch=batch))
    assert snapshot(url) == snapshot(whole)
    assert totals(url) == totals(whole)
    marks = "select * from deployment_history order by series, deployed_at"
    assert rows(url, marks) == rows(whole, marks)


def test_a_new_model_version_is_a_mark_at_its_first_window(whole: str) -> None:
    (mark,) = rows(whole, "select * from deployment_history")
    assert (mark["series"], mark["model_version"]) == ("m-small/svc-0", "v2")
    assert mark["deployed_at"] == rfc3339(START_MS + 40 * 60_000)


def test_a_newer_owner_fences_the_older_one_out(whole: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fenced.db'}"
    older, older_clock = pipeline_for(ledger_for(url, "older"), MESSAGES)
    for _ in range(8):
        older.turn(0.0)
        older_clock.advance(1_100)
    run_to_end(*pipeline_for(ledger_for(url, "newer"), MESSAGES))
    late = older.owned[KEY].take_draft(older_clock.now_ms())
    with pytest.raises(Fenced):
        older.parts.ledger.commit(late)
    older.commit_all()
    assert KEY not in older.owned or not older.owned[KEY].dirty
    assert snapshot(url) == snapshot(whole)


def test_a_partition_whose_newer_owner_left_again_is_claimed_again(whole: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'back.db'}"
    pipeline, clock = pipeline_for(ledger_for(url), MESSAGES)
    for _ in range(8):
        pipeline.turn(0.0)
        clock.advance(1_100)
    other = ledger_for(url, "other")
    taken = other.claim(*KEY, now_ms=clock.now_ms())
    other.release(*KEY, taken.epoch, clock.now_ms())
    run_to_end(pipeline, clock)
    assert snapshot(url) == snapshot(whole)
    assert totals(url) == totals(whole)


def test_a_database_that_goes_away_pauses_the_source_and_loses_nothing(whole: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'away.db'}"
    ledger = ledger_for(url)
    pipeline, clock = pipeline_for(ledger, MESSAGES)
    real = ledger.commit
    outage = {"left": 6}

    def commit(draft: Commit) -> object:
        if outage["left"] > 0:
            outage["left"] -= 1
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise OperationalError("commit", {}, full)
        return real(draft)

    ledger.commit = commit  # type: ignore[method-assign,assignment]
    paused = False
    for _ in range(10_000):
        if not pipeline.turn(0.0):
            break
        paused = paused or any(p.source_paused for p in pipeline.owned.values())
        clock.advance(700)
    assert paused
    assert outage["left"] == 0
    assert snapshot(url) == snapshot(whole)


@pytest.mark.parametrize(
    ("took_ms", "keeps_up", "between_s"),
    [(10, False, 1.0), (150, False, 1.5), (5_000, False, 3.0), (150, True, 0.25), (5_000, True, 0.25)],
)
def test_a_partition_that_lags_commits_seldom_and_one_that_keeps_up_at_once(
    tmp_path: Path, took_ms: int, keeps_up: bool, between_s: float
) -> None:
    """So that they take about a tenth of its time; never more seldom than every third interval. One that
    keeps up writes as soon as windows have closed, here in every turn or two."""
    ledger = ledger_for(f"sqlite:///{tmp_path / 'slow.db'}")
    whole = pack(KEY, range(len(MESSAGES)), MESSAGES)
    source = MemorySource([cut(whole, 0, 8)] if keeps_up else [whole], bounded=False)
    clock = ManualClock(START_MS + YEAR_MS // 12)
    parts = Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
    pipeline, real, ended_s = Pipeline(Settings(), parts), ledger.commit, []

    def commit(draft: Commit) -> object:
        result = real(draft)
        clock.advance(took_ms)
        ended_s.append(clock.monotonic_s())
        return result

    ledger.commit = commit  # type: ignore[method-assign,assignment]
    for turn in range(1, 80):
        pipeline.turn(0.0, max_records=8)
        clock.advance(250)
        if keeps_up and 8 * turn < len(MESSAGES):
            source.add(cut(whole, 8 * turn, 8 * turn + 8))
    gaps_s = [late - early - took_ms / 1000 for early, late in pairwise(ended_s)]
    assert len(gaps_s) >= 3
    assert all(between_s - 0.01 < gap < between_s + 0.26 for gap in gaps_s[1:]), gaps_s


def test_a_batch_of_many_windows_is_committed_in_portions(tmp_path: Path) -> None:
    """Behind an outage all that waits may come as one batch; its first windows do not wait for its last."""
    messages = lines(services=2, minutes=200, per_minute=6, fault_at=150)
    ledger, scorer = ledger_for(f"sqlite:///{tmp_path / 'portions.db'}"), SlowScorer()
    commit = ledger.commit
    starts: list[list[int]] = []

    def noted(made: Commit) -> object:
        starts.append([batch.window_start_ms for batch in made.windows])
        return commit(made)

    ledger.commit = noted  # type: ignore[method-assign, assignment]
    pipeline, clock = pipeline_for(ledger, messages, batch=len(messages), scorer=scorer)
    scorer.clock = clock
    for _ in ("claimed", "read, and decoded ahead", "worked on"):
        pipeline.turn(0.0)
    assert pipeline.records_read == len(messages), "one batch, in one turn"
    sizes = list(map(len, starts))
    assert len(sizes) >= 200 // MAX_STARTS and 0 < min(sizes) <= max(sizes) <= MAX_STARTS, sizes
    run_to_end(pipeline, clock)
    assert [at for own in starts for at in own] == [START_MS + n * 60_000 for n in range(200)]


def test_a_large_batch_waits_for_one_round_whatever_others_bring(tmp_path: Path) -> None:
    """It is left for the batch behind it, of its own partition; another one may have messages for ever."""
    ledger, clock = ledger_for(f"sqlite:///{tmp_path / 'two.db'}"), ManualClock(START_MS)
    busy = Partition("b", 0)
    large = lines(services=1, minutes=20, per_minute=110, fault_at=99)
    source = MemorySource([pack(KEY, range(len(large)), large)], bounded=False)
    parts = Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
    pipeline, read = Pipeline(Settings(), parts), []
    for turn in range(5):
        source.add(pack(busy, [turn], [large[0].replace(b"svc-0", b"other")]))
        pipeline.turn(0.0)
        read.append(pipeline.records_read)
    assert len(large) >= decoding.AHEAD_ROWS
    assert read[1] < len(large) <= read[2], read


def with_late_messages(messages: list[bytes]) -> list[bytes]:
    """Every 40th comes a hundred messages later: behind its window, and within the horizon."""
    late = {i: messages[i] for i in range(0, len(messages) - 100, 40)}
    order = [(i + 100.5 if i in late else float(i), m) for i, m in enumerate(messages)]
    return [message for _, message in sorted(order, key=lambda pair: pair[0])]


UNEVEN = with_late_messages(MESSAGES)


class Weather:
    """At the n-th statement of an engine the database is away for a while, or the process dies."""

    def __init__(self, ledger: DyingLedger, dies_at: int | None, away_at: dict[int, int]) -> None:
        self.statements, self.dies_at, self.away_at, self.away = 0, dies_at, dict(away_at), 0
        event.listen(ledger.engine, "before_cursor_execute", self._statement)
        event.listen(ledger.engine, "commit", self._statement)

    def _statement(self, *_: object) -> None:
        self.statements += 1
        if self.statements == self.dies_at:
            raise Killed
        self.away = max(self.away - 1, self.away_at.pop(self.statements, 0))
        if self.away > 0:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """An undisturbed run with late messages, and how many statements it took."""
    url = f"sqlite:///{tmp_path_factory.mktemp('uneven') / 'whole.db'}"
    ledger = ledger_for(url)
    weather = Weather(ledger, None, {})
    run_to_end(*pipeline_for(ledger, UNEVEN))
    assert totals(url)["late"] > 0
    return url, weather.statements


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_database_that_goes_away_or_a_death_at_any_statement_changes_nothing(
    uneven: tuple[str, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, statements = uneven
    url = f"sqlite:///{tmp_path_factory.mktemp('weather') / 'dying.db'}"
    at = st.integers(1, statements)
    for dies_at in [*data.draw(st.lists(at, max_size=3)), None]:
        ledger = ledger_for(url)
        Weather(ledger, dies_at, data.draw(st.dictionaries(at, st.integers(1, 4), max_size=4)))
        with contextlib.suppress(Killed):
            run_to_end(*pipeline_for(ledger, UNEVEN))
        ledger.engine.dispose()
    assert snapshot(url) == snapshot(whole)
    assert totals(url) == totals(whole)


def test_a_commit_whose_answer_is_lost_is_written_once(whole: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deaf.db'}"
    ledger = ledger_for(url)
    pipeline, clock = pipeline_for(ledger, MESSAGES)
    real, lost = ledger.commit, 0

    def commit(draft: Commit) -> object:
        nonlocal lost
        result = real(draft)
        if not result.repeated:  # type: ignore[attr-defined]
            lost += 1
            raise OperationalError(
                "commit", {}, sqlite3.OperationalError("gone"), connection_invalidated=True
            )
        return result

    ledger.commit = commit  # type: ignore[method-assign,assignment]
    run_to_end(pipeline, clock)
    assert lost > 3
    assert snapshot(url) == snapshot(whole)
    assert totals(url) == totals(whole)


def test_a_series_in_two_partitions_goes_on_under_two_names(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'two.db'}"
    ledger, clock = ledger_for(url), ManualClock(START_MS + YEAR_MS // 12)
    halves = [lines(services=1, minutes=30, per_minute=6, fault_at=None, seed=seed) for seed in (1, 2)]
    source = MemorySource([pack(Partition("unkeyed", i), range(len(h)), h) for i, h in enumerate(halves)])
    pipeline = Pipeline(
        Settings(), Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
    )
    run_to_end(pipeline, clock)
    windows = snapshot(url)["window_history"]
    names = [dict(row)["series"] for row in windows]
    assert sorted(set(names)) == ["m-small/svc-0", "m-small/svc-0@1"]
    assert totals(url)["accepted"] == sum(map(len, halves))
    told = "select h.series, a.summary from alert_history h join alerts a on a.alert_id = h.alert_id "
    (incident,) = rows(url, told + "join incident_history i on i.incident_id = h.incident_id "
                       "where h.reason = 'series_in_two_partitions'")  # fmt: skip
    assert (
        incident["series"] == "source:unkeyed/1" and "found in another partition too" in incident["summary"]
    )


def test_records_deleted_before_they_were_read_are_one_incident_with_their_number(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gap.db'}"
    ledger, clock = ledger_for(url), ManualClock(START_MS + YEAR_MS // 12)
    messages = lines(services=1, minutes=30, per_minute=6, fault_at=None)
    log = pack(KEY, range(len(messages)), messages)
    for left in (cut(log, 0, 60), cut(log, 100, len(messages))):
        source = MemorySource([left], bounded=False)
        parts = Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
        pipeline = Pipeline(Settings(), parts)
        for _ in range(20):
            pipeline.turn(0.0)
            clock.advance(1_100)
    ledger.fold_pending(clock.now_ms() + 60_000)
    statement = "select i.status, a.summary, a.severity from alerts a join incident_alerts l on "
    statement += "l.alert_id = a.alert_id join incidents i on i.incident_id = l.incident_id "
    (incident,) = rows(url, statement + "where a.series = 'source:memory/0'")
    assert str(incident["summary"]).startswith("40 records of memory/0 (offsets 60 to 99) were deleted")
    assert (incident["status"], incident["severity"]) == ("resolved", "critical")


def test_a_lost_partition_keeps_no_other_from_being_given_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'leave.db'}"
    ledger, clock = ledger_for(url, "leaving"), ManualClock(START_MS + YEAR_MS // 12)
    keys = [Partition("keyed", 0), Partition("keyed", 1)]
    both = lines(services=2, minutes=1, per_minute=6, fault_at=None)  # no window closes, so none is committed
    logs = [[line for line in both if f"svc-{i}".encode() in line] for i in range(2)]
    source = MemorySource(
        [pack(k, range(len(log)), log) for k, log in zip(keys, logs, strict=True)], bounded=False
    )
    pipeline = Pipeline(
        Settings(), Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))
    )
    pipeline.turn(0.0)
    pipeline.turn(0.0)
    assert set(pipeline.owned) == set(keys) and all(p.dirty for p in pipeline.owned.values())
    lost = next(p.key for p in pipeline.owned.values() if p.dirty)
    ledger_for(url, "newer").claim(lost.topic, lost.partition, now_ms=clock.now_ms())
    pipeline.leave()
    found = rows(url, 'select topic, "partition", owner from partitions')
    assert {(r["topic"], r["partition"]): r["owner"] for r in found} == {
        k: "newer" if k == lost else None for k in keys
    }


def test_a_partition_that_the_group_takes_away_is_given_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'revoked.db'}"
    pipeline, clock = pipeline_for(ledger_for(url, "leaving"), MESSAGES)
    pipeline.turn(0.0)
    pipeline.turn(0.0)
    assert rows(url, "select owner from partitions") == [{"owner": "leaving"}] and pipeline.owned[KEY].dirty
    source = pipeline.parts.source
    assert isinstance(source, MemorySource)
    source.revoke(KEY)
    pipeline.turn(0.0)
    assert rows(url, "select owner from partitions") == [{"owner": None}]
    assert not pipeline.owned and clock.now_ms() > 0


def test_leaving_without_a_database_says_that_nothing_was_given_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'away.db'}"
    pipeline, _ = pipeline_for(ledger_for(url, "leaving"), MESSAGES)
    pipeline.turn(0.0)
    pipeline.turn(0.0)

    def away(*_: object) -> None:
        raise OperationalError("begin", {}, sqlite3.OperationalError("gone"), connection_invalidated=True)

    engine = pipeline.parts.ledger.engine
    event.listen(engine, "before_cursor_execute", away)
    assert pipeline.leave() is False
    event.remove(engine, "before_cursor_execute", away)
    assert rows(url, "select owner from partitions") == [{"owner": "leaving"}]
    assert pipeline.leave() is True
    assert rows(url, "select owner from partitions") == [{"owner": None}]
