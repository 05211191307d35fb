"""Kafka through kafka-python: one member of a consumer group.

Threads: kafka-python calls the rebalance listener on its own IO thread, where only `seek` and `pause`
are safe; everything else happens in the thread that polls. Where reading goes on is decided by the
caller (`start`), never by offsets committed to Kafka.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import structlog
from kafka import OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from monitor import metrics
from monitor.clock import Clock, SystemClock
from monitor.config import SourceSettings
from monitor.errors import SourceError
from monitor.sources.base import Assigned, Event, Gap, Partition, Progress, RawBatch, Revoked, Undecodable
from monitor.sources.batches import cut, row_of
from monitor.sources.contact import Contact
from monitor.sources.kafka_client import (
    await_partitions,
    client_options,
    close_within,
    group_consumer,
    keep_join_result,
)
from monitor.sources.listener import Listener, partition_of
from monitor.sources.probe import unreadable_range
from monitor.sources.readers import make_reader
from monitor.sources.record_batches import UnreadableBatchError

log = structlog.get_logger(__name__)

LOOKUP_TIMEOUT_MS = 2_000
HOLE_S = 1.0  # a partition that lags and does not move for this long may stand before a hole in the offsets
STALL_S = 60.0  # a partition that lags and does not move for this long gets a new consumer
METADATA_TIMEOUT_S = 3.0  # to connect (TLS and a password take their time) and to hear of the partitions
REFUSED = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedVersionError,
)
AWAY = (
    kafka_errors.RetriableError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.KafkaTimeoutError,
    OSError,
)


@dataclass
class _Owned:
    """A partition of ours, as the polling thread sees it."""

    started: bool = False
    paused: bool = True
    from_configured_start: bool = False  # `start(None)` whose offset is not looked up yet
    position: int = 0
    moved_s: float = 0.0  # when `position` last changed, or there was nothing to read; see `_excuse`


class KafkaSource:
    """Reads `settings.topics` as a member of `settings.group_id`. See `Source` for the contract.

    A broker that is away makes `poll` return nothing; it is logged once per outage. A batch the client
    cannot read is found by bisection, handed out as Undecodable and stepped over.
    """

    def __init__(self, settings: SourceSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self._consumer: Any = None
        self._reader = make_reader(settings.reader)
        self._hole_s = STALL_S / 2 if self._reader.tells_holes else HOLE_S
        self._callbacks: deque[Event] = deque()  # filled on the IO thread
        self._owned: dict[Partition, _Owned] = {}
        self._unreadable: dict[Partition, list[Undecodable]] = {}
        self._contact = Contact(settings, self.clock)
        self._closed = False
        self._left_s = self.clock.monotonic_s()  # when the last poll ended

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        deadline_s = self.clock.monotonic_s() + timeout_s
        self._excuse()
        events: list[Event] = []
        found: list[RawBatch] = []
        try:
            if self._consumer is None:
                self._connect()
            self._look_up_starts()
            events += self._step_over_known()
            left_s = max(0.0, deadline_s - self.clock.monotonic_s())
            keep_join_result(self._consumer)
            found = self._reader.read(self._consumer, left_s, max_records)
            self._listen(found)
        except kafka_errors.OffsetOutOfRangeError as error:
            self._seek_back()
            events += self._gaps(error)
        except REFUSED as error:
            raise SourceError(f"Kafka refuses: {error!r}") from error
        except AWAY as error:
            self._went_away(error, deadline_s)
        except SourceError:  # a setting that waiting does not mend
            raise
        except UnreadableBatchError as error:
            events += self._pass_by(error)
        except Exception as error:
            events += self._recover(error)
        before = self._drain_callbacks()
        batches = self._batches(found)
        self._watch()
        self._left_s = self.clock.monotonic_s()
        return before + events + batches

    def _connect(self) -> None:
        consumer = group_consumer(self.settings)
        self._reader.attach(consumer)
        consumer.subscribe(self.settings.topics, listener=Listener(consumer, self._callbacks))
        self._consumer = consumer
        self._contact.heard()
        await_partitions(consumer, self.settings.topics, METADATA_TIMEOUT_S)

    def _drain_callbacks(self) -> list[Event]:
        events: list[Event] = []
        while self._callbacks:
            event = self._callbacks.popleft()
            if isinstance(event, Assigned):
                self._owned[event.partition] = _Owned(moved_s=self.clock.monotonic_s())
            elif isinstance(event, Revoked) and self._owned.pop(event.partition, None) is None:
                continue
            events.append(event)
        return events

    def _batches(self, found: list[RawBatch]) -> list[Event]:
        batches: list[Event] = []
        for batch in found:
            owned = self._owned.get(batch.partition)
            if owned is None or not owned.started:
                continue  # revoked, or revoked and assigned anew, while these were under way
            rest = cut(batch, row_of(batch.offsets, owned.position), len(batch))
            if len(rest):
                batches.append(rest)
            if rest.next_offset > owned.position:
                owned.position = rest.next_offset
                owned.moved_s = self.clock.monotonic_s()
        return batches

    def _seek_back(self) -> None:
        """After a poll that failed: what it had drained before is fetched again, not lost."""
        for partition, owned in self._owned.items():
            if self._consumer is not None and owned.started and not owned.from_configured_start:
                with contextlib.suppress(ValueError, AssertionError):  # revoked meanwhile
                    self._consumer.seek(TopicPartition(*partition), owned.position)

    def _look_up_starts(self) -> None:
        for partition, owned in self._owned.items():
            if owned.started and owned.from_configured_start:
                tp = TopicPartition(*partition)
                earliest = self.settings.start == "earliest"
                ask = self._consumer.beginning_offsets if earliest else self._consumer.end_offsets
                self._begin(partition, owned, ask([tp], timeout_ms=LOOKUP_TIMEOUT_MS)[tp])

    def _begin(self, partition: Partition, owned: _Owned, offset: int) -> None:
        tp = TopicPartition(*partition)
        owned.position, owned.from_configured_start = offset, False
        owned.moved_s = self.clock.monotonic_s()
        if self._consumer is None:  # given up meanwhile; that it is revoked is on its way
            return
        with contextlib.suppress(ValueError, AssertionError):  # revoked meanwhile; the event is on its way
            self._consumer.seek(tp, offset)
            if not owned.paused:
                self._consumer.resume(tp)

    def _gaps(self, error: Exception) -> list[Event]:
        """Offsets that are out of range: behind the log's start is a gap, beyond its end an error."""
        gaps: list[Event] = []
        for tp, offset in dict(error.args[0]).items():
            partition = partition_of(tp)
            owned = self._owned.get(partition)
            if owned is None or not owned.started:
                continue
            try:
                first = self._consumer.beginning_offsets([tp], timeout_ms=LOOKUP_TIMEOUT_MS)[tp]
                end = self._consumer.end_offsets([tp], timeout_ms=LOOKUP_TIMEOUT_MS)[tp]
            except AWAY:
                continue  # the next poll fails on the same offset
            if offset > end:
                raise SourceError(
                    f"{partition} ends at {end}, but {offset} was reached before: "
                    "the topic was truncated or made anew"
                ) from error
            if first > offset:
                gaps.append(Gap(partition, offset, first))
                self._begin(partition, owned, first)
            else:
                self._begin(partition, owned, offset)
        return gaps

    def _pass_by(self, error: UnreadableBatchError) -> list[Event]:
        """A batch that says itself where it begins and ends: nothing before or behind it is lost with it."""
        metrics.SOURCE_ERRORS.labels(kind="poll").inc()
        log.warning("source.unreadable_batch", error=repr(error.__cause__)[:500], offsets=str(error))
        self._seek_back()
        owned = self._owned.get(error.partition)
        if owned is None or not owned.started or owned.from_configured_start or owned.position >= error.end:
            return []
        first = max(error.first, owned.position)
        event = Undecodable(error.partition, first, error.end, error.reason)
        self._unreadable.setdefault(error.partition, []).append(event)
        self._begin(error.partition, owned, error.end)
        return [event]

    def _recover(self, error: Exception) -> list[Event]:
        """An exception nobody expects from a poll: find the batch at fault, or begin with a new consumer."""
        metrics.SOURCE_ERRORS.labels(kind="poll").inc()
        log.warning("source.poll_failed", error=repr(error)[:500])
        self._seek_back()
        found: list[Event] = []
        for partition, owned in self._owned.items():
            if not owned.started or owned.paused or owned.from_configured_start:
                continue
            with contextlib.suppress(*AWAY):
                damaged = unreadable_range(client_options(self.settings), partition, owned.position)
                if damaged is not None:
                    event = Undecodable(partition, *damaged)
                    self._unreadable.setdefault(partition, []).append(event)
                    self._begin(partition, owned, event.end)
                    found.append(event)
        if not found:
            self._rebuild("unexpected error")
        return found

    def _step_over_known(self) -> list[Event]:
        """A seek behind a known unreadable batch, before the client touches it, costs nothing."""
        found: list[Event] = []
        for partition, damaged in self._unreadable.items():
            owned = self._owned.get(partition)
            if owned is None or not owned.started or owned.paused or owned.from_configured_start:
                continue
            for event in damaged:
                if event.first <= owned.position < event.end:
                    found.append(Undecodable(partition, owned.position, event.end, event.reason))
                    self._begin(partition, owned, event.end)
        return found

    def _rebuild(self, why: str) -> None:
        """Leave the group and join again with a new consumer; partitions come back as Assigned."""
        metrics.SOURCE_ERRORS.labels(kind="rebuild").inc()
        log.warning("source.rebuild", reason=why)
        old, self._consumer = self._consumer, None
        close_within(old, 2.0)
        self._callbacks.clear()
        self._callbacks.extend(Revoked(partition) for partition in self._owned)

    def _excuse(self) -> None:
        """What the caller took between two polls, compiling or waiting for a database, is nobody's stall."""
        away_s = self.clock.monotonic_s() - self._left_s
        for owned in self._owned.values():
            owned.moved_s += away_s

    def _watch(self) -> None:
        """A partition that lags and stands still: offsets without records, or a client that is stuck."""
        if self._consumer is None:
            return
        if self._contact.away:
            if self._contact.is_stuck(self._consumer, self._owned):
                self._rebuild("the broker answers, but not to this client")
            return
        now_s = self.clock.monotonic_s()
        for partition, owned in self._owned.items():
            if not owned.started or owned.paused or owned.from_configured_start:
                owned.moved_s = now_s
                continue
            end = self._end(partition)
            if end is None or owned.position >= end:
                owned.moved_s = now_s
            elif self._hole_s < now_s - owned.moved_s and (at := self._ahead(partition)) > owned.position:
                owned.position, owned.moved_s = at, now_s
            elif now_s - owned.moved_s > STALL_S:
                self._rebuild(f"{partition} stands at {owned.position} of {end}")
                return

    def _ahead(self, partition: Partition) -> int:
        """The client's position; control records and compaction put it ahead of the last record.

        Not for every poll: this call begins an offset validation of its own, and one that is cut short
        keeps the partition from being fetched.
        """
        try:
            found = self._consumer.position(TopicPartition(*partition), timeout_ms=LOOKUP_TIMEOUT_MS)
        except Exception:
            return -1
        return -1 if found is None else int(found)

    def _end(self, partition: Partition) -> int | None:
        try:
            end = self._consumer.highwater(TopicPartition(*partition))
        except Exception:
            return None
        return None if end is None else int(end)

    def _went_away(self, error: BaseException, deadline_s: float) -> None:
        self._contact.lost(error)
        self._seek_back()
        threading.Event().wait(max(0.0, deadline_s - self.clock.monotonic_s()))

    def _listen(self, found: list[RawBatch]) -> None:
        """A poll that brings nothing says nothing about the broker: after a while it is asked."""
        if self._contact.heard() if found else self._contact.ask_if_silent(self._consumer, self._owned):
            for owned in self._owned.values():
                owned.moved_s = self.clock.monotonic_s()

    def start(self, partition: Partition, offset: int | None) -> None:
        owned = self._owned.get(partition)
        if owned is None:
            return  # revoked; the event was handed out or is on its way
        owned.started, owned.paused, owned.from_configured_start = True, False, offset is None
        if offset is not None:
            self._begin(partition, owned, offset)

    def pause(self, partition: Partition) -> None:
        self._set_paused(partition, True)

    def resume(self, partition: Partition) -> None:
        self._set_paused(partition, False)

    def _set_paused(self, partition: Partition, paused: bool) -> None:
        owned = self._owned.get(partition)
        if owned is None or not owned.started or owned.paused == paused:
            return
        owned.paused = paused
        if self._consumer is not None and not owned.from_configured_start:
            change = self._consumer.pause if paused else self._consumer.resume
            with contextlib.suppress(Exception):  # revoked meanwhile
                change(TopicPartition(*partition))

    def commit(self, offsets: dict[Partition, int]) -> None:
        if self._consumer is None or not offsets:
            return
        wanted = {TopicPartition(*p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
        try:
            self._consumer.commit_async(wanted, callback=_committed)
        except Exception as error:
            _committed(wanted, error)

    def progress(self) -> dict[Partition, Progress]:
        """A partition is shown at its end only if the broker has said so within the last seconds."""
        reading = {
            partition: owned
            for partition, owned in self._owned.items()
            if owned.started and not owned.from_configured_start
        }
        ends = {partition: self._end(partition) for partition in reading}
        at_end = [p for p, end in ends.items() if end is not None and reading[p].position >= end]
        ends.update(self._contact.ends(self._consumer, at_end))
        return {p: Progress(owned.position, ends[p], owned.paused) for p, owned in reading.items()}

    def away_s(self) -> float:
        return self._contact.away_s()

    def close(self, timeout_s: float = 5.0) -> None:
        if not self._closed:
            self._closed = True
            close_within(self._consumer, timeout_s)
            self._consumer = None
            self._owned.clear()


def _committed(offsets: Any, response: Any) -> None:
    if isinstance(response, Exception):
        metrics.SOURCE_ERRORS.labels(kind="commit").inc()
        log.info("source.commit_failed", error=repr(response)[:300])
