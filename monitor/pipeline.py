"""From a log line to an incident: the whole path in one place.

    source.poll -> decode -> windows.add -> (a window closes) -> score -> alert -> commit -> source.commit

`Pipeline.turn` is one round of that path. Claims and commits are monitor.owning's. Incidents and the outbox
are made inside the ledger's transaction (storage.ledger calls monitor.incidents' fold); monitor.delivery
sends what lies in the outbox.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from monitor import alerting, metrics, rollouts
from monitor.decoding import DecodeAhead, Decoded, Decoding
from monitor.gaps import cap_alert, gap_alert
from monitor.owning import TELL_S, Owner
from monitor.partition import OwnedPartition
from monitor.records import RecordColumns
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
from storage.types import DeploymentRow, RejectedRow

log = structlog.get_logger()

MAX_DRAFT_WINDOWS = 20_000
MAX_INBOX_BATCHES = 4
AHEAD_S = 0.05  # that a batch waits for the one behind it, to be worked on beside its decoding
COMMIT_SHARE = 0.1  # of the time of a partition that lags, aimed at
LAGGING_INTERVALS = 3  # commit intervals that such a partition may wait at the most


class _HaltedError(Exception):
    """A signal came while a batch was worked on."""


@dataclass(slots=True, eq=False)
class Pipeline(Owner):
    """Moves the partitions that it owns forward; every method is called from one thread."""

    windows_closed: int = 0
    records_read: int = 0
    _ends_at_s: float = float("-inf")
    _ahead: DecodeAhead = field(default_factory=DecodeAhead)
    _brought: set[Partition] = field(default_factory=set)  # partitions of which the newest poll has messages
    _left: bool = False  # the newest round has left a batch for the next one

    # ---------------------------------------------------------------- the path

    def turn(self, timeout_s: float, max_records: int = 50_000) -> bool:
        """One round: poll, work, commit. Returns False when a bounded log has been read to its end."""
        self._show_life()
        events = self.parts.source.poll(min(timeout_s, AHEAD_S) if self._left else timeout_s, max_records)
        self._left = False
        self._brought = {event.partition for event in events if isinstance(event, RawBatch)}
        for event in events:
            self._receive(event)
        self._mind_brokers()
        if self.parts.clock.monotonic_s() >= self._retry_at_s:
            self._tell_of_rest()
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
            if self._left_for_later(p):
                break
            waiting = p.inbox.popleft()
            if isinstance(waiting, Gap | Undecodable):
                self._step_over(p, waiting)
                continue
            decoded = waiting if isinstance(waiting, Decoded) else self._decoded(p, waiting)
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

    def _left_for_later(self, p: OwnedPartition) -> bool:
        """The newest batch of a partition that has more to read is decoded while the one before it is worked
        on; so it stays for the round after the one that brought it."""
        newest = p.inbox[0]
        only = p.key in self._brought and len(p.inbox) == 1
        left = only and isinstance(newest, Decoding) and newest.ahead
        self._left |= left
        return left

    def _decoded(self, p: OwnedPartition, waiting: Decoding) -> Decoded:
        self.records_read += waiting.messages
        return p.without_known_rejects(waiting.result())

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
            self._tell_at_work()
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

    def _commit_if_due(self, p: OwnedPartition) -> None:
        waited_s = self.parts.clock.monotonic_s() - p.committed_at_s
        if p.dirty and (p.draft.window_rows >= MAX_DRAFT_WINDOWS or waited_s >= self._between_commits_s(p)):
            self.commit(p)

    def _between_commits_s(self, p: OwnedPartition) -> float:
        """The interval that is configured; none once windows have closed, as somebody may wait for what they
        say. While the partition lags nobody does, and where commits take long they are rarer."""
        interval_s = self.settings.database.commit_interval_s
        end = self.ends.get(p.key)
        if p.next_offset is None or (end is not None and p.next_offset >= end):
            return 0.0 if p.draft.windows else interval_s
        return min(max(interval_s, p.commit_took_s / COMMIT_SHARE), LAGGING_INTERVALS * interval_s)

    # --------------------------------------------------------------- the rarer events

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
            now_ms = self.parts.clock.now_ms()
            p.inbox.append(
                self._ahead.begin(p.decoder, event, now_ms) if isinstance(event, RawBatch) else event
            )
            p.read_at_s = self.parts.clock.monotonic_s()

    def _observe(self) -> None:
        if self.parts.clock.monotonic_s() - self._ends_at_s >= TELL_S:
            self._ends_at_s = self.parts.clock.monotonic_s()
            self._look_for_stalls()
            self._look_for_quiet()
        moving = [p for p in self.owned.values() if not p.resting and not self._done(p)]
        known = [p.event_ms for p in moving or self.owned.values() if p.event_ms is not None]
        self.parts.models.observe(known)
        metrics.SERIES_LIVE.set(sum(len(p.states) for p in self.owned.values()))

    @property
    def waiting_for_model(self) -> bool:
        """True while every partition that could go on waits for a training to end."""
        waiting = [p.at_gate for p in self.owned.values() if p.inbox or p.at_gate]
        return bool(waiting) and all(waiting)

    def newest_event_ms(self) -> int | None:
        marks = [p.windows.watermark_ms for p in self.owned.values() if p.windows.watermark_ms is not None]
        return max(marks, default=None)

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

    def _let_idle_time_pass(self, p: OwnedPartition) -> None:
        """A partition that is fully read lets event time go on without records, so that silence shows."""
        mark, window = p.windows.watermark_ms, self.settings.window
        idle_s = self.parts.clock.monotonic_s() - max(p.read_at_s, p.silence.unsure_at_s)
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
            self.parts.ledger.finish(*p.place)
            p.resting = True

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
