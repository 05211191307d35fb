"""The only writer of pipeline results: one transaction per commit, fenced by the epoch of the owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, case, delete, or_, select, update
from sqlalchemy import text as sql_text

from storage import folding, kept, notices, schema, text
from storage.attendance import Attendance
from storage.engine import reading
from storage.fence import pass_fence
from storage.results import ResultWriter
from storage.rows import series_key
from storage.schema import table
from storage.types import AlertRow, Claim, Commit, Fold, SeriesRow

PARTITIONS, SERIES = table(schema.PartitionTable), table(schema.SeriesTable)
ALERTS = table(schema.AlertTable)
SKETCHES = table(schema.WindowSketchTable)
SKETCH_HORIZONS = 2
"""Sketches are kept this many revision horizons: amendments that wait for their window to close were
decided at an earlier watermark, and a restart decides them again."""
GIVE_BACK_LOCK_MS = 300
"""A process that ends cannot wait for a transaction that hangs, its own perhaps."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    repeated: bool  # True: the database held this commit already, its answer had been lost
    folded: int  # alert transitions that became incident changes in this transaction


class Ledger:
    """Claims partitions and writes their commits; used from one thread.

    `fold` is called inside the commit's transaction. `allowed_lateness_ms` is how far behind the watermark
    a window may still close; `hold_s` is how long (wall time) a partition that nobody commits, claims or
    touches holds back the incidents of the others. After `attend`, as long as `fold_pending` is called
    regularly, only time in which this process could see the database counts, and in which nothing was
    excused: after an outage everybody gets `hold_s` to come back. Database errors pass through as they are:
    see `engine.is_transient`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        fold: Fold,
        owner: str,
        revision_horizon_ms: int,
        reopen_ms: int,
        allowed_lateness_ms: int = 0,
        hold_s: float = 30.0,
    ) -> None:
        self.engine = engine
        self.fold = fold
        self.owner = text.clean(owner, schema.NAME_LENGTH)
        self.revision_horizon_ms = revision_horizon_ms
        self.reopen_ms = reopen_ms
        self.allowed_lateness_ms = allowed_lateness_ms
        self._attendance = Attendance(int(hold_s * 1000))
        self._results = ResultWriter(engine.dialect.name)

    # ------------------------------------------------------------------ owners

    def claim(
        self,
        topic: str,
        partition: int,
        *,
        topic_id: str | None = None,
        leader_epoch: int | None = None,
        partitions: int | None = None,
        now_ms: int,
    ) -> Claim:
        """Become the owner: every commit of an earlier owner is refused from now on.

        Where the topic was deleted and made anew (another `topic_id`), offsets start over; the watermark
        and the series stay, so that records read a second time are late and not windows a second time.
        Of a topic with `partitions` every one counts from now on, so that incidents wait for those whose
        first owner is still to come.
        """
        numbers = {partition, *range(partitions or 0)}
        with self.engine.begin() as connection:
            here = (PARTITIONS.c.topic == topic) & (PARTITIONS.c.partition == partition)
            connection.execute(
                _insert_missing(connection),
                [{"topic": topic, "partition": n, "updated_at_ms": now_ms} for n in sorted(numbers)],
            )
            stored = connection.execute(
                update(PARTITIONS)
                .where(here)
                .values(epoch=PARTITIONS.c.epoch + 1, owner=self.owner, finished=False, updated_at_ms=now_ms)
                .returning(*PARTITIONS.c)
            ).one()
            changed = None not in (topic_id, stored.topic_id) and topic_id != stored.topic_id
            anew: dict[str, Any] = {"next_offset": None, "restart_offset": None, "close_offset": None}
            values = {
                "topic_id": topic_id if topic_id is not None else stored.topic_id,
                "leader_epoch": leader_epoch if leader_epoch is not None else stored.leader_epoch,
                **(anew if changed else {}),
            }
            connection.execute(update(PARTITIONS).where(here).values(values))
            offsets = {name: values.get(name, getattr(stored, name)) for name in anew}
            self._results.forget(stored.id)
            return Claim(
                topic=topic,
                partition=partition,
                epoch=stored.epoch,
                **offsets,
                watermark_ms=stored.watermark_ms,
                records=stored.records,
                accepted=stored.accepted,
                rejected=stored.rejected,
                late=stored.late,
                duplicates=stored.duplicates,
                model_version=stored.model_version,
                series=kept.live_series(connection, stored.id),
                rejected_offsets=kept.rejected_offsets(
                    connection,
                    stored.id,
                    values["topic_id"] or "",
                    offsets["restart_offset"],
                    offsets["next_offset"],
                ),
                topic_changed=changed,
            )

    def release(self, topic: str, partition: int, epoch: int, now_ms: int) -> None:
        """Give the partition back; nothing happens when a newer owner has it. Incidents wait for the next."""
        with self.engine.begin() as connection:
            values = {"owner": None, "finished": False, "updated_at_ms": now_ms}
            connection.execute(update(PARTITIONS).where(_mine(topic, partition, epoch)).values(values))

    def give_back(self) -> int:
        """Give back every partition that this process still holds; returns how many. From any thread."""
        with self.engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sql_text(f"SET LOCAL lock_timeout = '{GIVE_BACK_LOCK_MS}ms'"))
            mine = PARTITIONS.c.owner == self.owner
            return connection.execute(update(PARTITIONS).where(mine).values(owner=None)).rowcount

    def touch(self, topic: str, partition: int, epoch: int, now_ms: int) -> None:
        """The partition lags and is worked on: it holds incidents back for another `hold_s`."""
        with self.engine.begin() as connection:
            values = {"updated_at_ms": now_ms, "finished": False}
            connection.execute(update(PARTITIONS).where(_mine(topic, partition, epoch)).values(values))

    def rests(self, places: Sequence[tuple[str, int, int]], now_ms: int) -> None:
        """These (topic, partition, epoch) are as fully read as when they were finished, as of just now: to be
        said about twice a second. Written while transitions wait, and where it was not believed any more."""
        mine = or_(*(_mine(*place) for place in places))
        doubted = select(PARTITIONS.c.id).where(mine, PARTITIONS.c.finished.is_(False))
        with reading(self.engine) as connection:
            nobody_waits = folding.newest_pending_ms(connection) is None
            if nobody_waits and connection.execute(doubted).first() is None:
                return
        later = case((PARTITIONS.c.updated_at_ms < now_ms, now_ms), else_=PARTITIONS.c.updated_at_ms + 1)
        with self.engine.begin() as connection:
            connection.execute(update(PARTITIONS).where(mine).values(updated_at_ms=later, finished=True))

    def finish(self, topic: str, partition: int, epoch: int, now_ms: int | None = None) -> int:
        """All there is has been read and committed: until its next commit it holds nobody's incidents back.

        Folds what was waiting for it; returns how many transitions. `now_ms` decides which other
        partitions still move, by default the wall time of the newest commit.
        """
        with self.engine.begin() as connection:
            found = connection.execute(
                update(PARTITIONS)
                .where(_mine(topic, partition, epoch))
                .values(finished=True)
                .returning(PARTITIONS.c.updated_at_ms)
            ).first()
            if found is None:
                return 0
            return self._fold(connection, now_ms if now_ms is not None else found.updated_at_ms)

    # ------------------------------------------------------------------ commits

    def commit(self, commit: Commit) -> CommitResult:
        """Write everything of `commit`, or nothing.

        Raises Fenced when the partition has a newer owner, IntegrityError for a window that exists
        already, ValueError for a score that is no number, SeriesConflict for a series of two partitions.
        A commit that is repeated because its answer was lost is recognised and written once.
        """
        with self.engine.begin() as connection:
            fence = pass_fence(connection, commit)
            if fence is None:
                return CommitResult(repeated=True, folded=0)
            if commit.topic_id is not None or commit.leader_epoch is not None:
                values = {"topic_id": commit.topic_id, "leader_epoch": commit.leader_epoch}
                connection.execute(
                    update(PARTITIONS)
                    .where(PARTITIONS.c.id == fence.partition_id)
                    .values({name: value for name, value in values.items() if value is not None})
                )
            topic_id = commit.topic_id or fence.topic_id or ""
            horizon_ms = (commit.watermark_ms or 0) - SKETCH_HORIZONS * self.revision_horizon_ms
            series_ids = self._results.write(
                connection, commit, fence.partition_id, topic_id, sketches_from_ms=horizon_ms
            )
            if commit.watermark_ms is not None:
                connection.execute(
                    delete(SKETCHES).where(
                        SKETCHES.c.partition_id == fence.partition_id, SKETCHES.c.window_start_ms < horizon_ms
                    )
                )
            folded = self._fold(connection, commit.committed_at_ms)
        self._results.remember(fence.partition_id, commit, series_ids)
        return CommitResult(repeated=False, folded=folded)

    def fold_pending(self, now_ms: int) -> int:
        """Fold transitions that waited for a partition which stands still or is at rest; for idle times."""
        self._attendance.look(now_ms)
        with self.engine.begin() as connection:
            newest_ms = folding.newest_pending_ms(connection)
            if newest_ms is None:
                folded, self._attendance.question = 0, None
            else:
                folded = self._fold_over_resting(connection, newest_ms, now_ms)
        self._attendance.looked(now_ms)
        return folded

    def event_time_ms(self, now_ms: int) -> int | None:
        """The event time up to which incidents are made of alerts; None before the first record."""
        with reading(self.engine) as connection:
            return notices.event_time_ms(connection, self._passed(connection, now_ms).over_resting_ms)

    def attend(self, now_ms: int) -> None:
        """From now on `fold_pending` is called every few seconds."""
        self._attendance.attend(now_ms)

    def excuse(self, now_ms: int) -> None:
        """Nobody can go on for now, as the brokers are away: everybody gets `hold_s` from now on. From any
        thread."""
        self._attendance.excuse(now_ms)

    def _fold_over_resting(self, connection: Connection, newest_ms: int, now_ms: int) -> int:
        rests = select(PARTITIONS.c.id, PARTITIONS.c.updated_at_ms).where(PARTITIONS.c.finished)
        resting = {row.id: row.updated_at_ms for row in connection.execute(rests)}
        passed = self._passed(connection, now_ms)
        up_to_ms, gone = self._attendance.beside_commits_ms(passed, newest_ms, resting, now_ms)
        if gone:
            awake = update(PARTITIONS).where(PARTITIONS.c.id.in_(gone)).values(finished=False)
            connection.execute(awake)
        return folding.fold_pending(connection, self.fold, up_to_ms, self.reopen_ms)

    def _fold(self, connection: Connection, now_ms: int) -> int:
        up_to_ms = self._attendance.in_commits_ms(self._passed(connection, now_ms))
        return folding.fold_pending(connection, self.fold, up_to_ms, self.reopen_ms)

    def _passed(self, connection: Connection, now_ms: int) -> folding.Passed:
        stale_before_ms = self._attendance.stale_before_ms(now_ms)
        return folding.passed(connection, stale_before_ms, self.allowed_lateness_ms)

    # -------------------------------------------------------------------- reads

    def load_sketch(self, series: str, window_start_ms: int) -> bytes | None:
        """The aggregate of a stored window that late records may amend; None when it is too old."""
        statement = (
            select(SKETCHES.c.sketch)
            .join(SERIES, SERIES.c.id == SKETCHES.c.series_id)
            .where(SERIES.c.name == series_key(series), SKETCHES.c.window_start_ms == window_start_ms)
        )
        with reading(self.engine) as connection:
            return connection.execute(statement).scalar()

    def has_alert(self, alert_id: str, status: str | None = None) -> bool:
        wanted = ALERTS.c.alert_id == alert_id
        if status is not None:
            wanted &= ALERTS.c.status == status
        with reading(self.engine) as connection:
            return connection.execute(select(ALERTS.c.alert_id).where(wanted)).first() is not None

    def firing_alert(self, series: str) -> AlertRow | None:
        """As the newest step left it; for a series whose own alert state cannot be read."""
        with reading(self.engine) as connection:
            return kept.firing_alert(connection, series)

    def load_parked(self, topic: str, partition: int, names: list[str]) -> list[SeriesRow]:
        """Those of `names` that were parked in this partition, with their states."""
        with reading(self.engine) as connection:
            return kept.parked_series(connection, topic, partition, names)


def _mine(topic: str, partition: int, epoch: int) -> Any:
    return (
        (PARTITIONS.c.topic == topic) & (PARTITIONS.c.partition == partition) & (PARTITIONS.c.epoch == epoch)
    )


def _insert_missing(connection: Connection) -> Any:
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_
    else:
        from sqlalchemy.dialects.sqlite import insert as insert_  # type: ignore[assignment]
    return insert_(PARTITIONS).on_conflict_do_nothing(index_elements=["topic", "partition"])
