"""From a log line to an incident: the whole path in one place.

    source.poll -> decode -> windows.add -> (a window closes) -> score -> alert -> commit -> source.commit

`Pipeline.turn` is one round of that path. Incidents and the outbox are made inside the ledger's
transaction (storage.ledger calls monitor.incidents' fold); monitor.delivery sends what lies in the outbox.
The database offset is the only truth: a partition whose commit is fenced is dropped with all its memory,
a commit that fails for now is tried again while every source partition is paused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from detectors.base import Scorer
from monitor import alerting, metrics, rollouts
from monitor.claims import APART, Parts, Waiting, load_partition
from monitor.config import Settings
from monitor.errors import SourceError
from monitor.gaps import apart_alert, cap_alert, gap_alert
from monitor.partition import Decoded, OwnedPartition
from monitor.records import Decoder, RecordColumns
from monitor.sources.base import (
    Assigned,
    EndOfLog,
    Event,
    Gap,
    Partition,
    RawBatch,
    Revoked,
    Undecodable,
)
from monitor.stored import revised_row, scored_rows
from monitor.windows import (
    Added,
    AmendedWindow,
    CapReached,
    ClosedWindows,
    ExpiredSeries,
    ParkedSeries,
    ReturnedSeries,
)
from storage.engine import is_transient
from storage.types import DeploymentRow, Fenced, RejectedRow, SeriesConflict

log = structlog.get_logger()

MAX_DRAFT_WINDOWS = 20_000
MAX_INBOX_BATCHES = 4
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 10.0
TELL_S = 5.0  # between words to the ledger about a partition that commits nothing
QUIET_S = 10.0  # a fully read partition without records for this long holds no incident back
MAX_HOLD_S = 300.0  # one that lags and cannot go on (a broker that is away) holds them back no longer


class _HaltedError(Exception):
    """A signal came while a batch was worked on."""


@dataclass(slots=True, eq=False)
class Pipeline:
    """Owns partitions and moves them forward; every method is called from one thread."""

    settings: Settings
    parts: Parts
    owned: dict[Partition, OwnedPartition] = field(default_factory=dict)
    unclaimed: Waiting = field(init=False)
    decoder: Decoder = field(init=False)
    _retry_at_s: float = 0.0
    _retry_wait_s: float = RETRY_FIRST_S
    windows_closed: int = 0
    records_read: int = 0
    halted: bool = False  # set by a signal: stop at the next batch
    turned_at_s: float = 0.0  # monotonic time of the newest sign of life, for the watchdog
    in_database: bool = False
    ends: dict[Partition, int | None] = field(default_factory=dict)  # of the log, as of the last seconds
    _ends_at_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.turned_at_s = self.parts.clock.monotonic_s()
        self.unclaimed = Waiting(self.parts.clock)
        self.decoder = Decoder(self.settings.record, self.settings.source, self.settings.window)

    # ---------------------------------------------------------------- the path

    def turn(self, timeout_s: float, max_records: int = 50_000) -> bool:
        """One round: poll, work, commit. Returns False when a bounded log has been read to its end."""
        self._show_life()
        for event in self.parts.source.poll(timeout_s, max_records):
            self._receive(event)
        if self.parts.clock.monotonic_s() >= self._retry_at_s:
            self._claim_waiting()
            self._observe()
            for p in list(self.owned.values()):
                self._move(p)
        self._apply_backpressure()
        return self.unfinished

    @property
    def unfinished(self) -> bool:
        """False when a bounded log has been read to its end."""
        if self.unclaimed.assigned or not self.owned:
            return True
        return any(not self._done(p) for p in self.owned.values())

    def _move(self, p: OwnedPartition) -> None:
        """One partition's share of a round.

        Where the database goes away while windows are being made, their state is half done: the partition
        is dropped and claimed again, which goes back to its last commit. The same when a signal comes in
        the middle of a long batch: its next owner does it again.
        """
        try:
            self._work(p)
            if self._still_ours(p):
                self._let_idle_time_pass(p)
                self._finish_if_ended(p)
                self._tell_ledger(p)
        except _HaltedError:
            self._release(p)
        except Exception as error:
            if not is_transient(error):
                raise
            self._wait_for_database(error)
            if self._still_ours(p):
                self._claim_again(p)

    def _still_ours(self, p: OwnedPartition) -> bool:
        return self.owned.get(p.key) is p and not self.halted

    def _work(self, p: OwnedPartition) -> None:
        """Everything that waits in the inbox of one partition, as far as the models in force allow."""
        while p.inbox and self._still_ours(p) and not self.blocked:
            self._show_life()
            if p.at_gate and not self._pass_gate(p):
                break
            waiting = p.inbox.popleft()
            if isinstance(waiting, Gap | Undecodable):
                self._step_over(p, waiting)
                continue
            decoded = waiting if isinstance(waiting, Decoded) else self._decode(p, waiting)
            row = self._row_at_gate(p, decoded.records)
            far = p.first_row_beyond(decoded.records, MAX_DRAFT_WINDOWS) if row != 0 else None
            if far is not None and (row is None or far.row < row):
                if far.row == 0:  # a leap of event time: pass it in portions
                    p.inbox.appendleft(decoded)
                    self._take_steps(p, p.windows.advance(far.horizon_ms))
                    self._commit_if_due(p)
                    continue
                row = None
                decoded, rest = decoded.split(far.row)
                p.inbox.appendleft(rest)
            if row is not None:
                decoded, rest = decoded.split(row)
                p.inbox.appendleft(rest)
                p.at_gate = True
            self._advance(p, decoded)
            self._commit_if_due(p)
        if self._still_ours(p):
            self._commit_if_due(p)

    def _decode(self, p: OwnedPartition, raw: RawBatch) -> Decoded:
        records, rejected = self.decoder.decode(raw, now_ms=self.parts.clock.now_ms())
        self.records_read += len(raw)
        return p.without_known_rejects(Decoded(records, rejected, raw.next_offset))

    def _advance(self, p: OwnedPartition, decoded: Decoded) -> None:
        """Accounts for one decoded stretch: rejects, windows, and the steps that the windows took."""
        for reject in decoded.rejected:
            self._reject(p, reject.offset, reject.reason, reject.sample)
        self._take_steps(p, p.windows.add(decoded.records))
        p.next_offset = max(decoded.next_offset, p.next_offset or 0)

    def _take_steps(self, p: OwnedPartition, added: Added) -> None:
        p.draft.count(added)
        for outcome, n in (
            ("accepted", added.accepted),
            ("late", added.late),
            ("duplicate", added.duplicates),
        ):
            if n:
                metrics.RECORDS.labels(outcome).inc(n)
        if added.refused:
            metrics.OVERFLOW.inc(added.refused)
        for step in added.steps:
            if self.halted:
                raise _HaltedError
            if isinstance(step, ClosedWindows):
                self._score_and_alert(p, step)
            elif isinstance(step, AmendedWindow):
                self._amend(p, step)
            elif isinstance(step, ExpiredSeries):
                self._expire(p, step)
            elif isinstance(step, CapReached):
                log.error("series_cap", partition=str(p.key), limit=step.limit, counted_as=step.series)
                p.draft.transitions += cap_alert(p.key, step)
            else:
                self._make_place(p, step)
        p.returning.clear()

    def _score_and_alert(self, p: OwnedPartition, step: ClosedWindows) -> None:
        with metrics.SCORE_SECONDS.time():
            scores = p.scorer.score(step.batch, p.states)
        p.draft.close(scored_rows(step.batch, scores, step.sketches), step.infos)
        names, start_ms = step.batch.series, step.batch.window_start_ms
        p.draft.deployments += [
            DeploymentRow(names[row], new, start_ms, old) for row, new, old in step.deployed
        ]
        compared = p.rollouts.step(step)
        p.draft.comparisons += compared
        worse = {row.series: row.summary for row in compared if row.verdict == "worse"}
        p.draft.transitions += rollouts.blame(p.alerts, worse, start_ms + step.batch.window_ms)
        p.draft.transitions += alerting.step(
            p.alerts, step, scores, self.settings.detection, note=p.rollouts.note
        )
        self.windows_closed += len(step.batch)
        metrics.WINDOWS.inc(len(step.batch))

    def _amend(self, p: OwnedPartition, step: AmendedWindow) -> None:
        """Late records changed a stored window: score it again, and its alert with it."""
        scores = p.scorer.rescore(step.batch, p.states)
        p.draft.transitions += alerting.amend(p.alerts, step, scores, self.settings.detection)
        p.draft.revise(revised_row(step, scores), step.info)
        start_ms = step.batch.window_start_ms
        p.draft.deployments += [
            DeploymentRow(step.info.series, new, start_ms, step.previous) for new in step.deployed
        ]
        p.rollouts.amended(step)
        metrics.REVISIONS.inc()

    def _expire(self, p: OwnedPartition, step: ExpiredSeries) -> None:
        for info in step.infos:
            p.draft.transitions += alerting.expire(p.alerts, info.series, step.at_ms)
            p.draft.expire(info.series)
            p.states.drop(info.series)
            p.rollouts.drop(info.series)

    def _make_place(self, p: OwnedPartition, step: ParkedSeries | ReturnedSeries) -> None:
        """Memory is bounded: a silent series leaves it, and gets its state back with its next record."""
        for info in step.infos:
            if isinstance(step, ReturnedSeries):
                p.take_back(info)
            else:
                p.draft.transitions += alerting.expire(p.alerts, info.series, step.at_ms)
                p.park(info)
        metrics.SERIES_MOVED.labels("parked" if isinstance(step, ParkedSeries) else "returned").inc(
            len(step.infos)
        )

    # ------------------------------------------------------------------ commit

    def _commit_if_due(self, p: OwnedPartition) -> None:
        waited_s = self.parts.clock.monotonic_s() - p.committed_at_s
        if p.dirty and (
            p.draft.window_rows >= MAX_DRAFT_WINDOWS or waited_s >= self.settings.database.commit_interval_s
        ):
            self.commit(p)

    def commit(self, p: OwnedPartition) -> bool:
        """Write the draft of one partition; False when it must be tried again or was fenced."""
        if not p.dirty:
            return True
        if p.untold_suffix and p.windows.watermark_ms is not None:
            p.draft.transitions += apart_alert(p.key, p.untold_suffix, p.windows.watermark_ms)
            p.untold_suffix = ""
        try:
            with metrics.COMMIT_SECONDS.time(), self._database():
                self.parts.ledger.commit(p.take_draft(self.parts.clock.now_ms()))
        except Fenced as fenced:
            metrics.COMMITS.labels("fenced").inc()
            log.warning("partition_lost", partition=str(p.key), reason=str(fenced))
            self._claim_again(p, wait_s=0.0 if fenced.reclaim else self.unclaimed.after_loss_s(p.key))
            return False
        except SeriesConflict as conflict:
            self._keep_apart(p, conflict)
            return False
        except Exception as error:
            if not is_transient(error):
                raise
            self._wait_for_database(error)
            return False
        metrics.COMMITS.labels("ok").inc()
        self._retry_wait_s = RETRY_FIRST_S
        for transition in p.draft.transitions:
            if transition.kind == "fired":
                metrics.ALERTS.labels(transition.alert.severity).inc()
        p.committed(self.parts.clock.monotonic_s())
        assert p.next_offset is not None
        self.parts.source.commit({p.key: p.next_offset})
        self.parts.on_committed()
        if p.windows.watermark_ms is not None:
            self._go_on_with(p, self.parts.models.chosen(p.scorer, p.windows.watermark_ms))
        return True

    def commit_all(self) -> bool:
        """Write every draft; False when some could not be written."""
        try:
            results = [self.commit(p) for p in list(self.owned.values())]
        except Exception as error:
            if not is_transient(error):
                raise
            self._wait_for_database(error)
            return False
        return all(results)

    def leave(self) -> bool:
        """An orderly end: write the drafts and give the partitions back, as far as the database answers.

        False when it does not answer: the next owner takes what was not given back, and reads again what
        was not written. A partition that was lost meanwhile keeps none of the others from going back.
        """
        if not self.blocked:
            self.commit_all()
        self.owned.clear()
        try:
            self.parts.ledger.give_back()
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("release_failed", error=str(error).splitlines()[0][:300])
            return False
        return True

    def _release(self, p: OwnedPartition) -> None:
        """Forget a partition and say so; where the database is away, its next owner takes it all the same."""
        self._drop(p.key)
        if self.blocked:
            return
        try:
            with self._database():
                self.parts.ledger.release(p.key.topic, p.key.partition, p.claim.epoch)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("release_failed", partition=str(p.key), error=str(error).splitlines()[0][:300])

    def _observe(self) -> None:
        if self.parts.clock.monotonic_s() - self._ends_at_s >= TELL_S:
            self._ends_at_s = self.parts.clock.monotonic_s()
            self.ends = {key: progress.end for key, progress in self.parts.source.progress().items()}
        moving = [p for p in self.owned.values() if not p.resting and not self._done(p)]
        known = [p.event_ms for p in moving or self.owned.values() if p.event_ms is not None]
        self.parts.models.observe(known)
        metrics.SERIES_LIVE.set(sum(len(p.states) for p in self.owned.values()))

    def _wait_for_database(self, error: Exception) -> None:
        """Nothing is lost and nothing goes on: drafts stay in memory, reading is paused, then again."""
        metrics.COMMITS.labels("retried").inc()
        log.warning(
            "database_unavailable", error=str(error).splitlines()[0][:300], retry_in_s=self._retry_wait_s
        )
        self._retry_at_s = self.parts.clock.monotonic_s() + self._retry_wait_s
        self._retry_wait_s = min(self._retry_wait_s * 2, RETRY_MAX_S)

    @property
    def waiting_for_model(self) -> bool:
        """True while every partition that could go on waits for a training to end."""
        waiting = [p.at_gate for p in self.owned.values() if p.inbox or p.at_gate]
        return bool(waiting) and all(waiting)

    def newest_event_ms(self) -> int | None:
        marks = [p.windows.watermark_ms for p in self.owned.values() if p.windows.watermark_ms is not None]
        return max(marks, default=None)

    @property
    def blocked(self) -> bool:
        return self.parts.clock.monotonic_s() < self._retry_at_s

    # ---------------------------------------------------------- partitions come and go

    def _receive(self, event: Event) -> None:
        if isinstance(event, Assigned):
            self.unclaimed.add(event)
            return
        if isinstance(event, Revoked):
            self.unclaimed.revoke(event.partition)
            if (revoked := self.owned.get(event.partition)) is not None:
                self._release(revoked)
            return
        p = self.owned.get(event.partition)
        if p is None:
            return  # read before the partition was taken away; its new owner reads it again
        if isinstance(event, EndOfLog):
            p.ended = True
        else:
            p.inbox.append(event)
            p.read_at_s = self.parts.clock.monotonic_s()

    def _claim_waiting(self) -> None:
        for assigned in self.unclaimed.due():
            if self.halted:
                return
            key = assigned.partition
            self._show_life()
            try:
                with self._database():
                    claim = self.parts.ledger.claim(
                        key.topic,
                        key.partition,
                        topic_id=assigned.topic_id,
                        leader_epoch=assigned.leader_epoch,
                        partitions=assigned.partitions,
                        now_ms=self.parts.clock.now_ms(),
                    )
                    p = load_partition(self.settings, self.parts, assigned, claim)
            except Exception as error:
                if not is_transient(error):
                    raise
                self._wait_for_database(error)
                return
            self.unclaimed.claimed(key)
            self.owned[key] = p
            self.parts.source.start(key, claim.restart_offset)
            log.info("partition_claimed", partition=str(key), epoch=claim.epoch, next_offset=p.next_offset)

    def _drop(self, key: Partition) -> None:
        """Forget a partition; what was drafted and not committed, its next owner does again."""
        if self.owned.pop(key, None) is not None:
            self.decoder.forget(key)

    def _claim_again(self, p: OwnedPartition, wait_s: float = 0.0) -> None:
        """Throw the memory of a partition away and begin anew from what the database has."""
        self._drop(p.key)
        self.parts.source.pause(p.key)
        self.unclaimed.add(p.assigned, wait_s)

    # --------------------------------------------------------------- the rarer events

    def _show_life(self) -> None:
        self.turned_at_s = self.parts.clock.monotonic_s()

    @contextmanager
    def _database(self) -> Iterator[None]:
        """What waits for the database is not stuck, however long it takes."""
        self.in_database = True
        try:
            yield
        finally:
            self._show_life()
            self.in_database = False

    def _tell_ledger(self, p: OwnedPartition) -> None:
        """Incidents are made as far as every partition has come: one that lags says that it is at work, one
        that is fully read lets the others go on without it."""
        now_s = self.parts.clock.monotonic_s()
        if p.ended or self.blocked or now_s - max(p.told_at_s, p.committed_at_s) < TELL_S:
            return
        p.told_at_s = now_s
        place = (p.key.topic, p.key.partition, p.claim.epoch)
        waiting = bool(p.inbox) or p.dirty or p.at_gate or now_s - p.read_at_s < QUIET_S
        with self._database():
            if not waiting and self._fully_read(p):
                if not p.resting:
                    self.parts.ledger.finish(*place, self.parts.clock.now_ms())
                    self.parts.on_committed()
                    p.resting = True
            elif now_s - p.committed_at_s < MAX_HOLD_S:
                self.parts.ledger.touch(*place, self.parts.clock.now_ms())

    def _fully_read(self, p: OwnedPartition) -> bool:
        progress = self.parts.source.progress().get(p.key)
        return (
            progress is not None
            and not progress.paused
            and progress.end is not None
            and progress.position >= progress.end
        )

    def _keep_apart(self, p: OwnedPartition, conflict: SeriesConflict) -> None:
        """A series of this partition lives in another one too: from now on it has a name of its own here.

        Raises SourceError for files, which are pieces of one log more often than logs of their own.
        """
        if p.key.topic.startswith("file:"):
            raise SourceError(f"{p.key.topic}: {conflict}; pieces of one log: zcat -f FILES | ... replay -")
        log.error("series_in_two_partitions", partition=str(p.key), error=str(conflict))
        metrics.SOURCE_ERRORS.labels("series_in_two_partitions").inc()
        self.parts.facts.remember(APART.format(p.key), f"@{p.key.partition}")
        self._claim_again(p)

    def _row_at_gate(self, p: OwnedPartition, records: RecordColumns) -> int | None:
        if p.gate_ms is None and len(records):
            mark_ms = p.windows.watermark_ms
            p.gate_ms = self.parts.models.gate_ms(
                int(records.timestamp_ms[0]) if mark_ms is None else mark_ms
            )
        return None if p.gate_ms is None else p.first_row_at(records, p.gate_ms)

    def _pass_gate(self, p: OwnedPartition) -> bool:
        """At a gate everything before it is committed; then on with the model decided for it."""
        assert p.gate_ms is not None
        if not self.commit(p):
            return False
        scorer = self.parts.models.decided(p.gate_ms, p.scorer)
        if scorer is None:
            return False
        self._go_on_with(p, scorer)
        p.at_gate = False
        p.gate_ms = self.parts.models.gate_ms(p.gate_ms)
        return True

    def _go_on_with(self, p: OwnedPartition, scorer: Scorer) -> None:
        if scorer.version != p.scorer.version:
            log.info("model_swapped", partition=str(p.key), old=p.scorer.version, new=scorer.version)
        p.scorer = scorer

    def _let_idle_time_pass(self, p: OwnedPartition) -> None:
        """A partition that is fully read lets event time go on without records, so that silence shows."""
        mark, window = p.windows.watermark_ms, self.settings.window
        idle_s = self.parts.clock.monotonic_s() - p.read_at_s
        if mark is None or p.inbox or p.ended or idle_s < window.idle_timeout_s or p.next_offset is None:
            return
        if not self._fully_read(p):
            return
        target_ms = self.parts.clock.now_ms() - int(window.idle_timeout_s * 1000)
        if not window.length_s * 1000 <= target_ms - mark <= window.empty_for_s * 1000:
            return  # a recorded log that ended long ago is no silence
        target_ms = min(target_ms, p.horizon_ms(mark, MAX_DRAFT_WINDOWS))
        p.gate_ms = p.gate_ms if p.gate_ms is not None else self.parts.models.gate_ms(mark)
        if target_ms >= p.gate_ms:
            self._take_steps(p, p.windows.advance(max(p.gate_ms - 1, mark)))
            p.at_gate = True
            self._pass_gate(p)
            return
        self._take_steps(p, p.windows.advance(target_ms))
        self.commit(p)

    def _finish_if_ended(self, p: OwnedPartition) -> None:
        """The end of a bounded log closes its open windows and holds no other partition back."""
        if not p.ended or p.inbox or self.blocked or p.windows.finished:
            return
        self._take_steps(p, p.windows.finish())
        if self.commit(p):
            self.parts.ledger.finish(p.key.topic, p.key.partition, p.claim.epoch)

    def _done(self, p: OwnedPartition) -> bool:
        return p.ended and not p.inbox and p.windows.finished and not p.dirty

    def _step_over(self, p: OwnedPartition, event: Gap | Undecodable) -> None:
        """Offsets that hold nothing to read: each is rejected, or they are a gap together."""
        if isinstance(event, Gap):
            self._gap(p, event)
        else:
            for offset in range(event.first, event.end):
                self._reject(p, offset, event.reason, "")
        p.next_offset = max(event.end, p.next_offset or 0)

    def _gap(self, p: OwnedPartition, gap: Gap) -> None:
        lost = gap.end - max(gap.first, p.next_offset or 0)
        if lost > 0:
            log.error("source_gap", partition=str(p.key), first=gap.first, end=gap.end, lost=lost)
            metrics.GAPS.inc(lost)
            mark_ms = p.windows.watermark_ms
            p.draft.transitions += gap_alert(
                gap, lost, self.parts.clock.now_ms() if mark_ms is None else mark_ms
            )

    def _reject(self, p: OwnedPartition, offset: int, reason: str, sample: str) -> None:
        if p.rebuilding(offset):
            return
        metrics.RECORDS.labels("rejected").inc()
        metrics.REJECTED.labels(reason).inc()
        p.draft.rejected.append(RejectedRow(offset, reason, sample, self.parts.clock.now_ms()))

    def _apply_backpressure(self) -> None:
        """Reading of a partition stops while its inbox is full or the database is away."""
        for p in self.owned.values():
            wanted = self.blocked or len(p.inbox) >= MAX_INBOX_BATCHES
            if wanted != p.source_paused:
                (self.parts.source.pause if wanted else self.parts.source.resume)(p.key)
                p.source_paused = wanted
