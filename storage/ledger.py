"""The only writer of pipeline results: one transaction per commit, fenced by the epoch of the owner."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, case, delete, or_, select, update
from sqlalchemy import text as sql_text

from storage import folding, notices, schema, text
from storage.attendance import Attendance
from storage.engine import reading
from storage.results import ResultWriter
from storage.rows import series_key
from storage.schema import table
from storage.series_rows import MAX_IDS
from storage.types import Claim, Commit, Fenced, Fold, SeriesRow

PARTITIONS, SERIES = table(schema.PartitionTable), table(schema.SeriesTable)
ALERTS = table(schema.AlertTable)
SKETCHES, REJECTS = table(schema.WindowSketchTable), table(schema.RejectTable)
SKETCH_HORIZONS = 2
"""Sketches are kept this many revision horizons: amendments that wait for their window to close were
decided at an earlier watermark, and a restart decides them again."""
TOTALS = ("records", "accepted", "rejected", "late", "duplicates")
OFFSETS = ("old_next_offset", "next_offset", "restart_offset", "close_offset")
FENCED = ("topic", "partition", "epoch", *OFFSETS, "watermark_ms", "model_version", "committed_at_ms")
GIVE_BACK_LOCK_MS = 300
"""A process that ends cannot wait for a transaction that hangs, its own perhaps."""

_FENCE = (
    update(PARTITIONS)
    .where(
        PARTITIONS.c.topic == bindparam("b_topic"),
        PARTITIONS.c.partition == bindparam("b_partition"),
        PARTITIONS.c.epoch == bindparam("b_epoch"),
        PARTITIONS.c.next_offset.is_not_distinct_from(bindparam("b_old_next_offset")),
        PARTITIONS.c.commit_token.is_distinct_from(bindparam("b_token")),
    )
    .values(
        next_offset=bindparam("b_next_offset"),
        restart_offset=bindparam("b_restart_offset"),
        close_offset=bindparam("b_close_offset"),
        watermark_ms=bindparam("b_watermark_ms"),
        model_version=bindparam("b_model_version"),
        commit_token=bindparam("b_token"),
        updated_at_ms=bindparam("b_committed_at_ms"),
        finished=False,
        **{name: PARTITIONS.c[name] + bindparam(f"b_{name}") for name in TOTALS},
    )
    .returning(PARTITIONS.c.id, PARTITIONS.c.topic_id)
)


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
                series=_live_series(connection, stored.id),
                rejected_offsets=_rejected(
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
        token = _token(commit)
        with self.engine.begin() as connection:
            fence = connection.execute(_FENCE, _fence_values(commit, token)).first()
            if fence is None:
                self._already_written_or_fenced(connection, commit, token)
                return CommitResult(repeated=True, folded=0)
            if commit.topic_id is not None or commit.leader_epoch is not None:
                values = {"topic_id": commit.topic_id, "leader_epoch": commit.leader_epoch}
                connection.execute(
                    update(PARTITIONS)
                    .where(PARTITIONS.c.id == fence.id)
                    .values({name: value for name, value in values.items() if value is not None})
                )
            topic_id = commit.topic_id or fence.topic_id or ""
            horizon_ms = (commit.watermark_ms or 0) - SKETCH_HORIZONS * self.revision_horizon_ms
            series_ids = self._results.write(
                connection, commit, fence.id, topic_id, sketches_from_ms=horizon_ms
            )
            if commit.watermark_ms is not None:
                connection.execute(
                    delete(SKETCHES).where(
                        SKETCHES.c.partition_id == fence.id, SKETCHES.c.window_start_ms < horizon_ms
                    )
                )
            folded = self._fold(connection, commit.committed_at_ms)
        self._results.remember(fence.id, commit, series_ids)
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

    def _already_written_or_fenced(self, connection: Connection, commit: Commit, token: str) -> None:
        stored = connection.execute(
            select(PARTITIONS.c.epoch, PARTITIONS.c.next_offset, PARTITIONS.c.commit_token).where(
                PARTITIONS.c.topic == commit.topic, PARTITIONS.c.partition == commit.partition
            )
        ).first()
        where = f"{commit.topic}[{commit.partition}]"
        if stored is None or stored.epoch != commit.epoch:
            raise Fenced(f"{where}: epoch {commit.epoch} is not the newest")
        if stored.commit_token != token:
            fenced = Fenced(
                f"{where}: the database stands at offset {stored.next_offset}, not {commit.old_next_offset}"
            )
            fenced.reclaim = True
            raise fenced

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

    def load_parked(self, topic: str, partition: int, names: list[str]) -> list[SeriesRow]:
        """Those of `names` that were parked in this partition, with their states."""
        found: list[SeriesRow] = []
        with reading(self.engine) as connection:
            for start in range(0, len(names), MAX_IDS):
                keys = {series_key(name): name for name in names[start : start + MAX_IDS]}
                parked = (
                    select(*_SERIES_ROW)
                    .join(PARTITIONS, PARTITIONS.c.id == SERIES.c.partition_id)
                    .where(PARTITIONS.c.topic == topic, PARTITIONS.c.partition == partition)
                    .where(SERIES.c.name.in_(list(keys)), SERIES.c.live.is_(False))
                    .where(SERIES.c.detector_state.is_not(None))
                )
                rows = connection.execute(parked).mappings()
                found += [SeriesRow(**{**row, "series": keys[row["series"]]}) for row in rows]
        return found


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


_SERIES_ROW = (
    SERIES.c.name.label("series"),
    SERIES.c.model,
    SERIES.c.endpoint,
    SERIES.c.first_seen_ms,
    SERIES.c.last_record_ms,
    SERIES.c.window_state,
    SERIES.c.detector_state,
    SERIES.c.alert_state,
    SERIES.c.rollout_state,
)


def _live_series(connection: Connection, partition_id: int) -> list[SeriesRow]:
    rows = connection.execute(
        select(*_SERIES_ROW).where(SERIES.c.partition_id == partition_id, SERIES.c.live.is_(True))
    ).mappings()
    return sorted((SeriesRow(**row) for row in rows), key=lambda r: r.series)


def _rejected(
    connection: Connection, partition_id: int, topic_id: str, first: int | None, end: int | None
) -> frozenset[int]:
    if first is None or end is None:
        return frozenset()
    statement = select(REJECTS.c.offset).where(
        REJECTS.c.partition_id == partition_id,
        REJECTS.c.offset >= first,
        REJECTS.c.offset < end,
        REJECTS.c.topic_id.in_(["", topic_id]),
    )
    return frozenset(connection.execute(statement).scalars())


def _token(commit: Commit) -> str:
    """Tells whether a stored commit is this one; equal for equal content, whenever it is tried."""
    content = [
        commit.epoch,
        commit.old_next_offset,
        commit.next_offset,
        commit.restart_offset,
        commit.close_offset,
        commit.watermark_ms,
        *(getattr(commit, name) for name in TOTALS),
        [row.series for row in commit.parked],
        [(batch.window_start_ms, len(batch.series)) for batch in commit.windows],
        [(w.series, w.window_start_ms) for w in commit.revisions],
        [(t.at_ms, t.kind, t.alert.alert_id) for t in commit.transitions],
        commit.expired_series,
        commit.model_version,
    ]
    return hashlib.sha256(repr(content).encode("utf-8", "replace")).hexdigest()


def _fence_values(commit: Commit, token: str) -> dict[str, Any]:
    return {**{f"b_{name}": getattr(commit, name) for name in (*FENCED, *TOTALS)}, "b_token": token}
