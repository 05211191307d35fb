"""Owning partitions: claims, commits, giving back, and what is done while the database is away.

The database offset is the only truth: a partition whose commit is fenced is dropped with all its memory, a
commit that fails for now is tried again while every source partition is paused. What is committed is made by
monitor.pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from detectors.base import Scorer
from monitor import metrics, stalls
from monitor.claims import APART, Parts, Waiting, load_partition
from monitor.config import Settings
from monitor.errors import SourceError
from monitor.gaps import apart_alert
from monitor.partition import OwnedPartition
from monitor.sources.base import Partition, Progress, is_file
from storage.engine import is_transient
from storage.types import Fenced, SeriesConflict

log = structlog.get_logger()

RETRY_FIRST_S, RETRY_MAX_S = 0.5, 10.0
REST_S = 0.5  # between words about partitions that have nothing to read
TELL_S = 5.0  # between words to the ledger about a partition that commits nothing
QUIET_S = 10.0  # a fully read partition without records for this long holds no incident back


@dataclass(slots=True, eq=False)
class Owner:
    """The partitions of this process; every method is called from one thread."""

    settings: Settings
    parts: Parts
    owned: dict[Partition, OwnedPartition] = field(default_factory=dict)
    unclaimed: Waiting = field(init=False)
    ends: dict[Partition, int | None] = field(default_factory=dict)  # of the log, as of the last seconds
    _retry_at_s: float = 0.0
    _retry_wait_s: float = RETRY_FIRST_S
    halted: bool = False  # set by a signal: stop at the next batch
    turned_at_s: float = 0.0  # monotonic time of the newest sign of life, for the watchdog
    in_database: bool = False
    _told_at_work_s: float = 0.0
    _rested_at_s: float = float("-inf")
    quiet: set[str] = field(default_factory=set)  # topics from which nothing comes
    unreachable: bool = False  # no broker has answered for `source.stalled_after_s`

    def __post_init__(self) -> None:
        self.turned_at_s = self.parts.clock.monotonic_s()
        self.unclaimed = Waiting(self.parts.clock)

    # ------------------------------------------------------------------ partitions come and go

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
        self.owned.pop(key, None)

    def _claim_again(self, p: OwnedPartition, wait_s: float = 0.0) -> None:
        """Throw the memory of a partition away and begin anew from what the database has."""
        self._drop(p.key)
        self.parts.source.pause(p.key)
        self.unclaimed.add(p.assigned, wait_s)

    # ------------------------------------------------------------------ commit

    def commit(self, p: OwnedPartition) -> bool:
        """Write the draft of one partition; False when it must be tried again or was fenced."""
        if not p.dirty:
            return True
        if p.untold_suffix and p.windows.watermark_ms is not None:
            p.draft.transitions += apart_alert(p.key, p.untold_suffix, p.windows.watermark_ms)
            p.untold_suffix = ""
        if p.stall is not None and p.stall_is_over:
            mark_ms = p.windows.watermark_ms
            p.draft.transitions.append(stalls.ends(p.stall, 0 if mark_ms is None else mark_ms))
            p.stall = None
        began_s = self.parts.clock.monotonic_s()
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
        self.parts.on_committed()
        metrics.COMMITS.labels("ok").inc()
        self._retry_wait_s = RETRY_FIRST_S
        for transition in p.draft.transitions:
            if transition.kind == "fired":
                metrics.ALERTS.labels(transition.alert.severity).inc()
        now_s = self.parts.clock.monotonic_s()
        p.committed(now_s, took_s=now_s - began_s)
        assert p.next_offset is not None
        self.parts.source.commit({p.key: p.next_offset})
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
                self.parts.ledger.release(*p.place, self.parts.clock.now_ms())
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("release_failed", partition=str(p.key), error=str(error).splitlines()[0][:300])

    def _go_on_with(self, p: OwnedPartition, scorer: Scorer) -> None:
        if scorer.version != p.scorer.version:
            log.info("model_swapped", partition=str(p.key), old=p.scorer.version, new=scorer.version)
        p.scorer = scorer

    # ------------------------------------------------------------------ the database

    @property
    def blocked(self) -> bool:
        return self.parts.clock.monotonic_s() < self._retry_at_s

    def _wait_for_database(self, error: Exception) -> None:
        """Nothing is lost and nothing goes on: drafts stay in memory, reading is paused, then again."""
        metrics.COMMITS.labels("retried").inc()
        log.warning(
            "database_unavailable", error=str(error).splitlines()[0][:300], retry_in_s=self._retry_wait_s
        )
        self._retry_at_s = self.parts.clock.monotonic_s() + self._retry_wait_s
        self._retry_wait_s = min(self._retry_wait_s * 2, RETRY_MAX_S)

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
        waiting = bool(p.inbox) or p.dirty or p.at_gate or now_s - p.read_at_s < QUIET_S
        if p.silence.stalled or (not waiting and self._fully_read(p)):
            if not p.resting:
                with self._database():
                    self.parts.ledger.finish(*p.place, self.parts.clock.now_ms())
                self.parts.on_committed()
                p.resting = True
        elif now_s - p.committed_at_s < self.settings.source.stalled_after_s:
            self._touch(p)

    def _touch(self, p: OwnedPartition) -> None:
        with self._database():
            self.parts.ledger.touch(*p.place, self.parts.clock.now_ms())

    def _tell_at_work(self) -> None:
        """In the middle of a long stretch: this partition and those that wait for their turn are at work."""
        now_s = self.parts.clock.monotonic_s()
        if self.blocked or now_s - self._told_at_work_s < TELL_S:
            return
        self._told_at_work_s = now_s
        try:
            for p in self.owned.values():
                if not (p.ended or p.resting) and now_s - p.told_at_s >= TELL_S:
                    self._touch(p)
                    p.told_at_s = now_s
        except Exception as error:  # the next commit meets it too, and is what waits
            if not is_transient(error):
                raise

    def _tell_of_rest(self) -> None:
        """Partitions at rest that have records again say so before anything is committed, the others that
        they have none: see `Ledger.fold_pending`."""
        try:
            for p in self.owned.values():
                if p.resting and p.inbox:
                    self._touch(p)
                    p.resting = False
            now_s = self.parts.clock.monotonic_s()
            if now_s - self._rested_at_s < REST_S:
                return
            self._rested_at_s = now_s
            resting = [p for p in self.owned.values() if p.resting]
            progress = self.parts.source.progress() if resting else {}
            places = [p.place for p in resting if _is_still_at_rest(p, progress.get(p.key))]
            if places:
                with self._database():
                    self.parts.ledger.rests(places, self.parts.clock.now_ms())
        except Exception as error:
            if not is_transient(error):
                raise
            self._wait_for_database(error)

    def _mind_brokers(self) -> None:
        """While no broker answers, nobody can take a partition over or read it: that is nobody's standing
        still, until it has lasted as long as a stall."""
        away_s = self.parts.source.away_s()
        lasts = away_s >= self.settings.source.stalled_after_s
        metrics.AWAY_SECONDS.set(away_s)
        if away_s > 0 and not lasts:
            self.parts.ledger.excuse(self.parts.clock.now_ms())
        if lasts and not self.unreachable:
            servers = self.settings.source.bootstrap_servers
            log.error("source_unreachable", seconds=round(away_s), bootstrap_servers=servers)
        elif self.unreachable and not lasts:
            log.info("source_reachable_again")
        self.unreachable = lasts

    def _fully_read(self, p: OwnedPartition) -> bool:
        return stalls.is_fully_read(self.parts.source.progress().get(p.key))

    def _look_for_stalls(self) -> None:
        """Said in the log, in the metrics and, where event time has begun, as an alert."""
        now_s, progress = self.parts.clock.monotonic_s(), self.parts.source.progress()
        self.ends = {key: found.end for key, found in progress.items()}
        for p in list(self.owned.values()):
            known, before = progress.get(p.key), p.silence.stalled
            busy = p.ended or p.source_paused or p.at_gate or bool(p.inbox) or is_file(p.key.topic)
            after_s = self.settings.source.stalled_after_s
            stalled = p.silence.look(known, now_s, read_at_s=p.read_at_s, busy=busy, timeout_s=after_s)
            if stalled and not before:
                end = None if known is None else known.end
                log.error("source_stalled", partition=str(p.key), next_offset=p.next_offset, end_offset=end)
                if p.stall is None and p.next_offset is not None and p.windows.watermark_ms is not None:
                    p.stall = stalls.stall_alert(p.key, p.next_offset, p.windows.watermark_ms)
                    p.draft.transitions.append(stalls.begins(p.stall))
            elif before and not stalled:
                log.info("source_moves_again", partition=str(p.key), next_offset=p.next_offset)
        metrics.STALLED.set(sum(p.silence.stalled for p in self.owned.values()))

    def quiet_s(self) -> dict[str, float]:
        """For how long no partition of a topic has brought anything, of those that had records."""
        now_s = self.parts.clock.monotonic_s()
        found: dict[str, float] = {}
        for p in list(self.owned.values()):
            if p.windows.watermark_ms is not None and not is_file(p.key.topic):
                topic, quiet_s = p.key.topic, now_s - p.read_at_s
                found[topic] = min(found.get(topic, quiet_s), quiet_s)
        return found

    def _look_for_quiet(self) -> None:
        """All of a topic falls silent at once where its producers have died: that is one thing, told in the
        log, health and metrics beside what the detectors say of its series."""
        quiet_s, limit_s = self.quiet_s(), self.settings.source.stalled_after_s
        metrics.QUIET_SECONDS.clear()  # of topics that are read elsewhere now
        for topic, seconds in quiet_s.items():
            metrics.QUIET_SECONDS.labels(topic).set(seconds)
        quiet = {topic for topic, seconds in quiet_s.items() if seconds >= limit_s}
        for topic in sorted(quiet - self.quiet):
            said = [p for p in self.owned.values() if p.key.topic == topic]
            log.warning(
                "topic_quiet",
                topic=topic,
                seconds=round(quiet_s[topic]),
                partitions=len(said),
                series=sum(p.windows.live_series for p in said),
                fully_read=all(self._fully_read(p) for p in said),
            )
        for topic in sorted((self.quiet - quiet) & quiet_s.keys()):
            log.info("topic_has_records_again", topic=topic)
        self.quiet = quiet

    def _keep_apart(self, p: OwnedPartition, conflict: SeriesConflict) -> None:
        """A series of this partition lives in another one too: from now on it has a name of its own here.

        Raises SourceError for files, which are pieces of one log more often than logs of their own.
        """
        if is_file(p.key.topic):
            raise SourceError(f"{p.key.topic}: {conflict}; pieces of one log: zcat -f FILES | ... replay -")
        log.error("series_in_two_partitions", partition=str(p.key), error=str(conflict))
        metrics.SOURCE_ERRORS.labels("series_in_two_partitions").inc()
        self.parts.facts.remember(APART.format(p.key), f"@{p.key.partition}")
        self._claim_again(p)


def _is_still_at_rest(p: OwnedPartition, progress: Progress | None) -> bool:
    return p.ended or p.silence.stalled or stalls.is_fully_read(progress)
