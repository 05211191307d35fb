"""The contract of the ledger, on SQLite and PostgreSQL: all or nothing, fenced, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from storage import queries
from storage.engine import connect, is_transient, upgrade
from storage.ledger import Ledger
from storage.types import Claim, Fenced, IncidentChanges, RejectedRow, SeriesConflict
from tests.storage_kit import (
    MINUTE_MS,
    fired,
    full_commit,
    make_alert,
    make_commit,
    make_ledger,
    make_revision,
    make_series,
    make_windows,
    resolved,
    snapshot,
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgres_database")
    engine = connect(url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return make_ledger(engine)


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_claim_returns_what_was_committed(ledger: Ledger) -> None:
    first = ledger.claim("logs", 3, topic_id="T", now_ms=0)
    assert (first.epoch, first.next_offset, first.watermark_ms, first.series) == (1, None, None, [])
    ledger.commit(
        dataclasses.replace(full_commit(first), model_version="m1", restart_offset=2, close_offset=3)
    )
    again = ledger.claim("logs", 3, topic_id="T", now_ms=0)
    assert (again.epoch, again.next_offset, again.restart_offset, again.close_offset) == (2, 10, 2, 3)
    assert (again.watermark_ms, again.model_version) == (10 * MINUTE_MS, "m1")
    assert (again.records, again.accepted, again.rejected) == (10, 9, 1)
    assert again.series == [make_series("chat/a"), make_series("chat/b")]
    assert again.rejected_offsets == {4} and not again.topic_changed


def test_a_topic_made_anew_starts_over_but_keeps_its_watermark(ledger: Ledger) -> None:
    ledger.commit(full_commit(ledger.claim("logs", 0, topic_id="T1", now_ms=0)))
    claim = ledger.claim("logs", 0, topic_id="T2", now_ms=0)
    assert claim.topic_changed and claim.next_offset is None and claim.watermark_ms == 10 * MINUTE_MS
    ledger.commit(make_commit(claim, None, 8, restart_offset=2))
    again = ledger.claim("logs", 0, topic_id="T2", now_ms=0)
    assert not again.topic_changed and again.rejected_offsets == frozenset()  # 4 was of the old topic


def test_a_zombie_writes_nothing(engine: Engine, ledger: Ledger) -> None:
    zombie = ledger.claim("logs", 0, now_ms=0)
    owner = make_ledger(engine).claim("logs", 0, now_ms=0)
    before = snapshot(engine)
    with pytest.raises(Fenced) as fenced:
        ledger.commit(full_commit(zombie))
    assert not fenced.value.reclaim and snapshot(engine) == before
    ledger.finish("logs", 0, zombie.epoch)
    ledger.release("logs", 0, zombie.epoch, 0)
    assert snapshot(engine) == before
    make_ledger(engine).commit(full_commit(owner))


def test_a_duplicate_window_fails_loudly(engine: Engine, ledger: Ledger) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(full_commit(claim))
    before = snapshot(engine)
    with pytest.raises(IntegrityError) as error:
        ledger.commit(make_commit(claim, 10, 20, windows=[make_windows(0, ["chat/b"])]))
    assert not is_transient(error.value) and snapshot(engine) == before


@pytest.mark.parametrize("idle", [False, True])
def test_a_commit_whose_answer_was_lost_is_written_once(engine: Engine, ledger: Ledger, idle: bool) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    commit = full_commit(claim)
    if idle:  # event time went on without a record: the offset alone does not show the repetition
        ledger.commit(make_commit(claim, None, 10, watermark_ms=0))
        commit = dataclasses.replace(commit, old_next_offset=10, records=0, accepted=0, rejected=0)
    assert not ledger.commit(commit).repeated
    before = snapshot(engine)
    again = dataclasses.replace(commit, committed_at_ms=commit.committed_at_ms + 5_000)
    assert ledger.commit(again).repeated and snapshot(engine) == before
    with pytest.raises(Fenced) as ahead:  # a retry that has grown meanwhile is not the one that was stored
        ledger.commit(make_commit(claim, None, 12))
    assert ahead.value.reclaim and snapshot(engine) == before


class Killed(Exception):  # noqa: N818
    pass


def test_a_kill_at_any_statement_leaves_nothing(engine: Engine, ledger: Ledger) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    before = snapshot(engine)
    statements, kill_at = 0, 0

    def kill(*_: Any) -> None:
        nonlocal statements
        statements += 1
        if statements == kill_at:
            raise Killed

    event.listen(engine, "after_cursor_execute", kill)
    try:
        while True:
            statements, kill_at = 0, kill_at + 1
            try:
                ledger.commit(full_commit(claim))
            except Killed:
                event.remove(engine, "after_cursor_execute", kill)
                assert snapshot(engine) == before, f"killed at statement {kill_at}"
                event.listen(engine, "after_cursor_execute", kill)
            else:
                break
    finally:
        event.remove(engine, "after_cursor_execute", kill)
    assert kill_at > 15
    assert {name: len(rows) for name, rows in snapshot(engine).items()} == {
        "partitions": 1,
        "series": 2,
        "windows": 4,
        "window_revisions": 1,
        "window_sketches": 4,
        "rejects": 1,
        "alerts": 1,
        "alert_transitions": 2,
        "incidents": 1,
        "incident_events": 2,
        "incident_alerts": 1,
        "deliveries": 2,
        "deployments": 1,
    }


def test_an_error_of_the_fold_undoes_the_commit(engine: Engine) -> None:
    def broken(*_: object) -> IncidentChanges:
        raise RuntimeError("fold")

    ledger = make_ledger(engine, broken)
    claim = ledger.claim("logs", 0, now_ms=0)
    before = snapshot(engine)
    with pytest.raises(RuntimeError, match="fold"):
        ledger.commit(full_commit(claim))
    assert snapshot(engine) == before


def test_revisions_keep_what_was_said_before(engine: Engine, ledger: Ledger) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(full_commit(claim))
    twice = [make_revision("chat/a", 0, 0.8), make_revision("chat/a", 0, 0.85)]
    ledger.commit(make_commit(claim, 10, 11, revisions=twice))
    (window, *_) = queries.windows(engine, "chat/a")
    assert (window["revision"], window["score"], window["request_count"]) == (3, 0.85, 1.0)
    kept = queries.window_revisions(engine, "chat/a", 0)
    assert [(row["revision"], row["score"]) for row in kept] == [(0, 0.25), (1, 0.75), (2, 0.8)]
    assert kept[0]["request_count"] == 60.0 and kept[0]["accuracy"] is None
    assert ledger.load_sketch("chat/a", 0) == b"sketch 2"


def test_sketches_go_behind_the_horizon_of_their_own_partition(engine: Engine) -> None:
    ledger = make_ledger(engine, revision_horizon_ms=10 * MINUTE_MS)
    slow, fast = ledger.claim("logs", 0, now_ms=0), ledger.claim("logs", 1, now_ms=0)
    for claim, name in ((slow, "m/slow"), (fast, "m/fast")):
        ledger.commit(
            make_commit(claim, None, 1, series=[make_series(name)], windows=[make_windows(0, [name])])
        )
    ledger.commit(make_commit(fast, 1, 100))
    assert ledger.load_sketch("m/slow", 0) == b"sketch" and ledger.load_sketch("m/fast", 0) is None


def test_expired_series_lose_their_states_and_may_come_back(engine: Engine, ledger: Ledger) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(full_commit(claim))
    ledger.commit(make_commit(claim, 10, 11, expired_series=["chat/a"]))
    assert [r.series for r in ledger.claim("logs", 0, now_ms=0).series] == ["chat/b"]
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(make_commit(claim, 11, 12, series=[make_series("chat/a")]))
    assert len(ledger.claim("logs", 0, now_ms=0).series) == 2


def test_a_series_may_go_to_another_partition_and_come_back(engine: Engine, ledger: Ledger) -> None:
    """Its counters go on, whatever the writer remembers of it."""
    claims = [ledger.claim("logs", n, now_ms=0) for n in (0, 1)]
    ends = [None, None]
    for turn, at in enumerate((0, 1, 0)):
        windows = [make_windows(turn * MINUTE_MS, ["m/moves"])]
        for expired in ([], ["m/moves"]):
            end = (ends[at] or 0) + 1
            more = {"expired_series": expired} if expired else {"windows": windows}
            series = [] if expired else [make_series("m/moves")]
            ledger.commit(make_commit(claims[at], ends[at], end, series=series, **more))
            ends[at] = end
            found = {n: [r.series for r in ledger.claim("logs", n, now_ms=0).series] for n in (0, 1)}
            claims = [ledger.claim("logs", n, now_ms=0) for n in (0, 1)]
            assert found == {at: [] if expired else ["m/moves"], 1 - at: []}
    with engine.connect() as connection:
        told = connection.execute(text("SELECT windows, last_window_start_ms FROM series")).all()
    assert told == [(3, 2 * MINUTE_MS)]


@pytest.mark.parametrize("leaves", ["expired", "parked"])
def test_a_series_lives_again_under_an_owner_that_knew_it(
    engine: Engine, ledger: Ledger, leaves: str
) -> None:
    """Meanwhile it may have lived in another partition."""
    here, there = (ledger.claim("logs", n, now_ms=0) for n in (0, 1))
    series = make_series("m/moves")
    gone = {"expired_series": ["m/moves"]} if leaves == "expired" else {"parked": [series]}
    ledger.commit(make_commit(here, None, 1, series=[series]))
    ledger.commit(make_commit(here, 1, 2, **gone))
    assert ledger.claim("logs", 2, now_ms=0).series == []
    ledger.commit(make_commit(there, None, 1, series=[series]))
    with pytest.raises(SeriesConflict, match="m/moves"):
        ledger.commit(make_commit(here, 2, 3, series=[series]))
    ledger.commit(make_commit(there, 1, 2, **gone))
    ledger.commit(make_commit(here, 2, 3, series=[series]))
    assert [row.series for row in ledger.claim("logs", 0, now_ms=0).series] == ["m/moves"]
    assert ledger.claim("logs", 1, now_ms=0).series == []


def test_a_series_that_comes_and_goes_within_one_commit(engine: Engine, ledger: Ledger) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(
        make_commit(claim, None, 1, windows=[make_windows(0, ["m/brief"])], expired_series=["m/brief"])
    )
    assert len(queries.windows(engine, "m/brief")) == 1
    assert ledger.claim("logs", 0, now_ms=0).series == []


def test_a_series_of_two_partitions_is_refused(engine: Engine, ledger: Ledger) -> None:
    first, second = ledger.claim("logs", 0, now_ms=0), ledger.claim("logs", 1, now_ms=0)
    ledger.commit(full_commit(first))
    before = snapshot(engine)
    with pytest.raises(SeriesConflict, match="chat/a"):
        ledger.commit(full_commit(second))
    assert snapshot(engine) == before


def test_text_that_databases_refuse_is_replaced(engine: Engine, ledger: Ledger) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    name = "m\0/" + "x" * 5_000
    alert = make_alert(name, 0, summary="a\0b", exemplars=["r\0", "\ud800"])
    ledger.commit(
        make_commit(
            claim,
            None,
            1,
            series=[make_series(name)],
            windows=[make_windows(0, [name])],
            transitions=[dataclasses.replace(fired(name, 0), alert=alert)],
            rejected_rows=[RejectedRow(0, "r" * 999, "s\0" * 9_999, 1)],
        )
    )
    assert ledger.load_sketch(name, 0) == b"sketch"
    assert "\0" not in queries.alerts(engine)[0]["summary"]
    assert len(queries.rejected(engine)[0]["sample"]) <= 2_048


def test_incidents_do_not_depend_on_the_order_of_partitions(engine: Engine) -> None:
    steps = {
        0: [fired("m/a", 0), resolved("m/a", 0, 4 * MINUTE_MS), fired("m/a", 7 * MINUTE_MS)],
        1: [fired("m/b", 2 * MINUTE_MS), resolved("m/b", 2 * MINUTE_MS, 5 * MINUTE_MS)],
    }

    def run(topic: str, order: list[tuple[int, int]]) -> list[tuple[Any, ...]]:
        """`order`: (partition, minute up to which it goes) one after the other."""
        with engine.begin() as connection:
            for name in (
                "deliveries",
                "incident_events",
                "incident_alerts",
                "incidents",
                "alert_transitions",
            ):
                connection.execute(text(f"DELETE FROM {name}"))
            connection.execute(text("UPDATE partitions SET finished = true"))
        ledger = make_ledger(engine)
        claims = {p: ledger.claim(topic, p, now_ms=1_000_000) for p in steps}
        at: dict[int, int | None] = dict.fromkeys(steps)
        for p in steps:  # both have a watermark before the first alert
            ledger.commit(make_commit(claims[p], None, 1, watermark_ms=0))
            at[p] = 1
        for p, minute in order:
            old = at[p] or 0
            mine = [t for t in steps[p] if (old - 1) * MINUTE_MS < t.at_ms <= (minute - 1) * MINUTE_MS]
            ledger.commit(
                make_commit(claims[p], old, minute, watermark_ms=(minute - 1) * MINUTE_MS, transitions=mine)
            )
            at[p] = minute
        for p, claim in claims.items():
            ledger.finish(topic, p, claim.epoch)
        with engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT incident_id, revision, at_ms, kind FROM incident_events "
                    "ORDER BY incident_id, revision"
                )
            )
            events = [tuple(row) for row in rows]
            outbox = connection.execute(
                text("SELECT delivery_id, event FROM deliveries ORDER BY delivery_id")
            )
            return events + [tuple(row) for row in outbox]

    together = run("t1", [(0, 20), (1, 20)])
    assert len(together) == 10  # opened, updated twice, resolved, opened; and a delivery each
    assert run("t2", [(1, 20), (0, 20)]) == together
    assert run("t3", [(p, minute) for minute in range(2, 21) for p in (0, 1)]) == together
    assert (
        run("t4", [(p, minute) for minute in range(2, 21, 3) for p in (1, 0)] + [(0, 21), (1, 21)])
        == together
    )


def test_a_partition_that_stands_still_holds_incidents_back_for_a_while_only(engine: Engine) -> None:
    ledger = make_ledger(engine, hold_s=30.0)
    still, moving = ledger.claim("logs", 0, now_ms=0), ledger.claim("logs", 1, now_ms=0)
    ledger.commit(make_commit(still, None, 1, watermark_ms=0, committed_at_ms=1_000))
    alarm = {"series": [make_series("m/a")], "transitions": [fired("m/a", 0)]}
    assert ledger.commit(make_commit(moving, None, 5, committed_at_ms=2_000, **alarm)).folded == 0
    assert ledger.fold_pending(30_000) == 0 and count(engine, "incidents") == 0
    assert ledger.fold_pending(31_001) == 1 and count(engine, "incidents") == 1
    assert ledger.fold_pending(31_001) == 0


def two_at_rest(engine: Engine) -> tuple[Ledger, Claim, Claim]:
    """Partitions 0 and 1, read up to event time 0 and finished at 1,000 ms; incidents wait for 30 s."""
    ledger = make_ledger(engine, hold_s=30.0)
    ledger.attend(0)
    claims = ledger.claim("logs", 0, now_ms=0), ledger.claim("logs", 1, now_ms=0)
    for claim in claims:
        ledger.commit(make_commit(claim, None, 1, watermark_ms=0, committed_at_ms=1_000))
        ledger.finish("logs", claim.partition, claim.epoch)
    return ledger, *claims


@pytest.mark.parametrize("has_records", [False, True])
def test_a_partition_at_rest_gets_a_moment_to_say_that_it_has_records_again(
    engine: Engine, has_records: bool
) -> None:
    """Two partitions go on after a night: who commits first does not decide what is grouped with what."""
    ledger, rests, moves = two_at_rest(engine)
    for now_ms in (2_000, 3_000):
        assert ledger.fold_pending(now_ms) == 0
    alarm = {"series": [make_series("m/b")], "transitions": [fired("m/b", 0)]}
    assert ledger.commit(make_commit(moves, 1, 5, committed_at_ms=3_900, **alarm)).folded == 0
    assert ledger.fold_pending(4_000) == 0
    both = [("logs", claim.partition, claim.epoch) for claim in (rests, moves)]
    ledger.rests(both, 4_100)
    assert ledger.fold_pending(5_000) == 0, "this answer may have been on its way"
    if not has_records:
        ledger.rests(both, 5_500)
        assert ledger.fold_pending(6_000) == 1
        return
    ledger.touch("logs", 0, rests.epoch, 5_200)
    for now_ms in (6_000, 7_000):
        assert ledger.fold_pending(now_ms) == 0
    earlier = {"series": [make_series("m/a")], "transitions": [fired("m/a", 0)]}
    assert ledger.commit(make_commit(rests, 1, 5, committed_at_ms=7_500, **earlier)).folded == 2


def test_time_that_is_excused_counts_for_nobody(engine: Engine) -> None:
    """Brokers that are away: whoever stands still has a reason."""
    ledger = make_ledger(engine, hold_s=30.0)
    ledger.attend(0)
    still, moving = ledger.claim("logs", 0, now_ms=0), ledger.claim("logs", 1, now_ms=0)
    ledger.commit(make_commit(still, None, 1, watermark_ms=0, committed_at_ms=1_000))
    alarm = {"series": [make_series("m/a")], "transitions": [fired("m/a", 0)]}
    assert ledger.commit(make_commit(moving, None, 5, committed_at_ms=2_000, **alarm)).folded == 0
    for now_ms in range(5_000, 120_001, 5_000):
        ledger.excuse(now_ms)
        assert ledger.fold_pending(now_ms) == 0
    for now_ms in range(125_000, 149_999, 5_000):
        assert ledger.fold_pending(now_ms) == 0
    assert ledger.fold_pending(150_000) == 1 and count(engine, "incidents") == 1


def test_a_partition_at_rest_whose_owner_died_is_waited_for_like_any_other(engine: Engine) -> None:
    ledger, _, moves = two_at_rest(engine)
    alarm = {"series": [make_series("m/b")], "transitions": [fired("m/b", 0)]}
    assert ledger.commit(make_commit(moves, 1, 5, committed_at_ms=4_000, **alarm)).folded == 0
    for now_ms in range(4_000, 33_001, 1_000):
        assert ledger.fold_pending(now_ms) == 0
    again = ledger.claim("logs", 0, now_ms=33_500)
    earlier = {"series": [make_series("m/a")], "transitions": [fired("m/a", 0)]}
    assert ledger.commit(make_commit(again, 1, 5, committed_at_ms=33_600, **earlier)).folded == 2


def test_a_partition_at_rest_that_nobody_takes_over_is_waited_for_once(engine: Engine) -> None:
    ledger, rests, moves = two_at_rest(engine)
    alarm = {"series": [make_series("m/b")], "transitions": [fired("m/b", 0)]}
    ledger.commit(make_commit(moves, 1, 5, committed_at_ms=4_000, **alarm))
    folded_at_ms = next(now_ms for now_ms in range(4_000, 60_000, 1_000) if ledger.fold_pending(now_ms))
    assert folded_at_ms == 34_000
    later = {"series": [make_series("m/b")], "transitions": [fired("m/b", 1)]}
    assert ledger.commit(make_commit(moves, 5, 9, committed_at_ms=36_000, **later)).folded == 1
    ledger.rests([("logs", 0, rests.epoch)], 37_000)  # it was only out of reach
    last = {"series": [make_series("m/b")], "transitions": [fired("m/b", 2)]}
    assert ledger.commit(make_commit(moves, 9, 11, committed_at_ms=37_500, **last)).folded == 0
    assert ledger.fold_pending(38_000) == 0


def test_a_question_of_earlier_transitions_is_asked_again(engine: Engine) -> None:
    ledger, rests, moves = two_at_rest(engine)
    alarm = {"series": [make_series("m/b")], "transitions": [fired("m/b", 0)]}
    ledger.commit(make_commit(moves, 1, 5, committed_at_ms=4_000, **alarm))
    assert ledger.fold_pending(5_000) == 0
    ledger.commit(make_commit(rests, 1, 5, watermark_ms=120_000, committed_at_ms=5_500))
    ledger.finish("logs", 0, rests.epoch)
    for now_ms in range(6_000, 60_000, 1_000):
        ledger.fold_pending(now_ms)
    later = {"series": [make_series("m/b")], "transitions": [fired("m/b", 240_000)]}
    assert ledger.commit(make_commit(moves, 5, 9, committed_at_ms=60_000, **later)).folded == 0
    for now_ms in range(60_000, 80_000, 1_000):
        assert ledger.fold_pending(now_ms) == 0


@pytest.mark.parametrize("hung_ms", [0, 13_000])
def test_a_database_that_hung_for_less_than_the_hold_is_nobody_s_standing_still(
    engine: Engine, hung_ms: int
) -> None:
    """A partition had no owner for a while, and nobody could take it while the database hung."""
    ledger = make_ledger(engine, hold_s=30.0)
    ledger.attend(0)
    still, moving = ledger.claim("logs", 0, now_ms=0), ledger.claim("logs", 1, now_ms=0)
    ledger.commit(make_commit(still, None, 1, watermark_ms=0, committed_at_ms=1_000))
    for now_ms in range(1_000, 31_000 - hung_ms, 1_000):
        assert ledger.fold_pending(now_ms) == 0  # the last of these hangs
    alarm = {"series": [make_series("m/a")], "transitions": [fired("m/a", 0)]}
    folded = ledger.commit(make_commit(moving, None, 5, committed_at_ms=31_100, **alarm)).folded
    assert folded == (0 if hung_ms else 1)


def test_transitions_behind_the_allowed_lateness_wait(engine: Engine) -> None:
    ledger = make_ledger(engine, allowed_lateness_ms=10_000)
    claim = ledger.claim("logs", 0, now_ms=0)
    alarm = {"series": [make_series("m/a")], "transitions": [fired("m/a", 0)]}
    assert ledger.commit(make_commit(claim, None, 1, watermark_ms=MINUTE_MS + 9_999, **alarm)).folded == 0
    assert ledger.commit(make_commit(claim, 1, 2, watermark_ms=MINUTE_MS + 10_000)).folded == 1


def test_scores_that_are_no_numbers_are_refused_before_anything_is_written(
    engine: Engine, ledger: Ledger
) -> None:
    claim = ledger.claim("logs", 0, now_ms=0)
    bad = make_windows(0, ["m/a"], score=make_windows(0, ["m/a"]).lstm_score)
    before = snapshot(engine)
    with pytest.raises(ValueError, match="no number"):
        ledger.commit(make_commit(claim, None, 1, windows=[bad], series=[make_series("m/a")]))
    assert snapshot(engine) == before


def test_totals_add_up(engine: Engine, ledger: Ledger) -> None:
    ledger.commit(full_commit(ledger.claim("logs", 0, now_ms=0)))
    assert queries.totals(engine) == {
        "records": 10,
        "accepted": 9,
        "rejected": 1,
        "late": 0,
        "duplicates": 0,
        "windows": 4,
        "series": 2,
        "alerts": 1,
        "incidents": 1,
    }


def test_a_database_that_is_away_is_transient() -> None:
    engine = connect("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(OperationalError) as error:
        make_ledger(engine).claim("logs", 0, now_ms=0)
    assert is_transient(error.value)


def test_a_locked_sqlite_file_is_transient_and_a_wrong_statement_is_not(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'l.db'}")
    upgrade(engine)
    with engine.begin(), engine.connect() as other:
        other.connection.driver_connection.execute("PRAGMA busy_timeout = 1")  # type: ignore[union-attr]
        with pytest.raises(OperationalError) as locked:
            other.execute(text("SELECT 1"))
    assert is_transient(locked.value)
    with engine.connect() as connection, pytest.raises(OperationalError) as wrong:
        connection.execute(text("SELECT * FROM nowhere"))
    assert not is_transient(wrong.value)
    engine.dispose()


def test_a_full_disk_is_transient_and_leaves_nothing(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'full.db'}")
    upgrade(engine)
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    before = snapshot(engine)
    names = [f"m/{i}" for i in range(3_000)]
    big = make_commit(
        claim, None, 5, windows=[make_windows(0, names)], series=[make_series(name) for name in names]
    )
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    limit = event.listens_for(engine, "begin", insert=True)

    def full(connection: Any) -> None:
        connection.connection.driver_connection.execute(f"PRAGMA max_page_count = {pages + 8}")

    limit(full)
    with pytest.raises(OperationalError) as error:
        ledger.commit(big)
    assert is_transient(error.value)
    event.remove(engine, "begin", full)
    engine.dispose()
    assert snapshot(engine) == before
    assert not ledger.commit(big).repeated
    engine.dispose()
