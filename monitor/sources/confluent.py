"""Kafka through confluent-kafka (librdkafka), the `confluent` extra: one member of a consumer group.

Everything happens in the thread that polls: rebalance callbacks run inside `consume`. Where reading goes
on is decided by the caller (`start`), never by offsets committed to Kafka. Import lazily.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from monitor import metrics
from monitor.clock import Clock, SystemClock
from monitor.config import SourceSettings
from monitor.errors import SourceError
from monitor.sources import kafka_client
from monitor.sources.base import Assigned, Event, Gap, Partition, Progress, Revoked, Undecodable
from monitor.sources.batches import cut, row_of
from monitor.sources.confluent_client import (
    TopicFacts,
    as_batch,
    consumer_options,
    describe,
    split,
    take,
)
from monitor.sources.probe import PASSING, unreadable_range

log = structlog.get_logger(__name__)

AT_ONCE = 10_000  # messages of one call of `consume`
LOOKUP_TIMEOUT_S = 2.0
CONFIRMED_S, CONFIRM_TIMEOUT_S = 5.0, 1.0
SAY_AGAIN_S = 60.0  # between two log lines about ends that nobody says
ASK_AGAIN_S, AWAY_S = 2.0, 10.0  # between two questions without an answer; brokers are away by then
REFUSED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_VERSION,
}
UNREADABLE = {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED}


@dataclass
class _Owned:
    """A partition of ours. `position` is the next offset to hand out."""

    started: bool = False
    paused: bool = True
    from_configured_start: bool = False  # `start(None)` whose offset is not looked up yet
    position: int = 0


class ConfluentSource:
    """Reads `settings.topics` as a member of `settings.group_id`. See `Source` for the contract.

    A batch that librdkafka cannot read is measured with kafka-python (see `unreadable_range`), handed
    out as Undecodable and stepped over. Unpacking is bounded for zstd only.
    """

    def __init__(self, settings: SourceSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self._consumer: Any = None
        self._callbacks: deque[Event] = deque()
        self._owned: dict[Partition, _Owned] = {}
        self._unreadable: dict[Partition, list[Undecodable]] = {}
        self._confirmed: dict[Partition, tuple[int, float]] = {}  # end of the log, when the broker said so
        self._refused: KafkaError | None = None
        self._away_since_s: float | None = None
        self._heard_s = self._asked_s = self.clock.monotonic_s()  # of a broker
        self._said_s = float("-inf")  # when the log was told that an end is unknown
        self._closed = False

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        deadline_s = self.clock.monotonic_s() + timeout_s
        found: list[Any] = []
        if self._consumer is None:
            self._connect()
        try:
            self._look_up_starts()
            left_s = max(0.0, deadline_s - self.clock.monotonic_s())
            found = take(self._consumer, left_s, max_records, AT_ONCE)
            self._ask_if_silent()
        except KafkaException as error:
            self._fails(error.args[0], deadline_s)
        if self._refused is not None:
            raise SourceError(f"Kafka refuses: {self._refused.str()}")
        return self._told() + self._events(found)

    def _connect(self) -> None:
        callbacks = {"error_cb": self._on_error, "on_commit": _on_commit}
        options = {**consumer_options(self.settings), **callbacks}
        self._consumer = Consumer(options, logger=_Quiet())
        self._consumer.subscribe(
            self.settings.topics,
            on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost,
        )  # fmt: skip

    # --------------------------------------------------- callbacks, inside `consume`; none of them raises

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        """Park them: nothing is handed out before `start`."""
        places = sorted(Partition(tp.topic, tp.partition) for tp in partitions)
        parked = [TopicPartition(*place, 0) for place in places]
        try:
            consumer.incremental_assign(parked)
            consumer.pause(parked)
        except KafkaException as error:
            log.error("source.assign_failed", partitions=[str(place) for place in places], error=repr(error))
        self._callbacks.extend(map(Assigned, places))

    def _on_revoke(self, consumer: Any, partitions: list[Any]) -> None:
        self._on_lost(consumer, partitions)
        with contextlib.suppress(KafkaException):
            consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Any, partitions: list[Any]) -> None:
        places = sorted(Partition(tp.topic, tp.partition) for tp in partitions)
        self._callbacks.extend(map(Revoked, places))

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in REFUSED:
            self._refused = error
        elif error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self._went_away(error)

    # ------------------------------------------------------------------------------------------- events

    def _told(self) -> list[Event]:
        """What the callbacks wrote down, with what is known of the topics."""
        events: list[Event] = []
        new = sorted({e.partition.topic for e in self._callbacks if isinstance(e, Assigned)})
        topics = describe(self.settings, new) if new else {}
        while self._callbacks:
            event = self._callbacks.popleft()
            if isinstance(event, Assigned):
                self._owned[event.partition] = _Owned()
                facts = topics.get(event.partition.topic, TopicFacts())
                event = Assigned(event.partition, facts.topic_id, None, facts.partitions)
            elif isinstance(event, Revoked) and self._owned.pop(event.partition, None) is None:
                continue
            events.append(event)
        return events

    def _events(self, found: list[Any]) -> list[Event]:
        events: list[Event] = []
        moved: set[Partition] = set()  # begun anew elsewhere: what stands behind is fetched again
        for partition, messages, error in split(found):
            owned = self._owned.get(partition)
            if partition in moved:
                continue
            if error is not None:
                events += self._met(partition, owned, messages[0].offset(), error)
                if error.code() != KafkaError._PARTITION_EOF:
                    moved.add(partition)
            elif owned is not None and owned.started:
                batch = as_batch(partition, messages)
                rest = cut(batch, row_of(batch.offsets, owned.position), len(batch))
                if len(rest):
                    events.append(rest)
                    owned.position = rest.next_offset
                self._came_back()
        return events

    def _met(self, partition: Partition, owned: _Owned | None, offset: int, error: KafkaError) -> list[Event]:
        """An error in the place of a message."""
        code = error.code()
        if code in REFUSED:
            raise SourceError(f"Kafka refuses: {error.str()}")
        ready = owned is not None and owned.started and not owned.from_configured_start
        if owned is None or not ready:
            return []  # of the parked partition, or of one that is no longer ours
        if code == KafkaError._PARTITION_EOF:
            owned.position = max(owned.position, offset)
            self._came_back()
            return []
        if code == KafkaError._AUTO_OFFSET_RESET:
            return self._gap(partition, owned)
        if code in UNREADABLE:
            return self._step_over(partition, owned, max(offset, owned.position), error)
        metrics.SOURCE_ERRORS.labels(kind="poll").inc()
        log.warning("source.poll_failed", partition=str(partition), error=error.str()[:500])
        self._begin(partition, owned, owned.position)
        return []

    def _gap(self, partition: Partition, owned: _Owned) -> list[Event]:
        """An offset out of range: before the log's start it is a gap, beyond its end an error."""
        ends = self._ends(partition, LOOKUP_TIMEOUT_S)
        if ends is None:  # met again as soon as the brokers answer
            self._begin(partition, owned, owned.position)
            return []
        (first, end), position = ends, owned.position
        if position > end:
            raise SourceError(
                f"{partition} ends at {end}, but {position} was reached before: "
                "the topic was truncated or made anew"
            )
        self._begin(partition, owned, max(first, position))
        return [Gap(partition, position, first)] if first > position else []

    def _step_over(self, partition: Partition, owned: _Owned, offset: int, error: KafkaError) -> list[Event]:
        known = self._unreadable.setdefault(partition, [])
        damaged = next((each for each in known if each.first <= offset < each.end), None)
        if damaged is None:
            metrics.SOURCE_ERRORS.labels(kind="poll").inc()
            log.warning("source.poll_failed", partition=str(partition), error=error.str()[:500])
            try:
                found = unreadable_range(kafka_client.client_options(self.settings), partition, offset)
            except PASSING:
                found = None
            if found is None:  # readable by another client, or no answer: tried again
                self._begin(partition, owned, owned.position)
                return []
            damaged = Undecodable(partition, *found)
            known.append(damaged)
        self._begin(partition, owned, damaged.end)
        return [Undecodable(partition, offset, damaged.end, damaged.reason)]

    # ------------------------------------------------------------------------------------ where to read

    def _look_up_starts(self) -> None:
        for partition, owned in self._owned.items():
            if owned.started and owned.from_configured_start:
                ends = self._ends(partition, LOOKUP_TIMEOUT_S)
                if ends is not None:
                    owned.from_configured_start = False
                    self._begin(partition, owned, ends[self.settings.start == "latest"])

    def _begin(self, partition: Partition, owned: _Owned, offset: int) -> None:
        """A new assignment at the offset works in every state of librdkafka's fetcher; a seek does not."""
        owned.position = offset
        place = [TopicPartition(*partition, offset)]
        with contextlib.suppress(KafkaException):
            self._consumer.incremental_unassign(place)
        try:
            self._consumer.incremental_assign(place)
            (self._consumer.pause if owned.paused else self._consumer.resume)(place)
        except KafkaException as error:  # revoked meanwhile; the event is on its way
            log.info("source.begin_failed", partition=str(partition), error=repr(error)[:300])

    def _ends(self, partition: Partition, timeout_s: float) -> tuple[int, int] | None:
        """(first offset, end) as the broker says now, None if it does not."""
        try:
            found = self._consumer.get_watermark_offsets(TopicPartition(*partition), timeout=timeout_s)
        except KafkaException as error:
            if self.clock.monotonic_s() - self._said_s >= SAY_AGAIN_S:
                self._said_s = self.clock.monotonic_s()
                log.info("source.end_unknown", error=repr(error)[:300])
            return None
        return None if found is None else (int(found[0]), int(found[1]))

    def _fails(self, error: KafkaError, deadline_s: float) -> None:
        metrics.SOURCE_ERRORS.labels(kind="poll").inc()
        log.warning("source.poll_failed", error=error.str()[:500])
        if error.code() in REFUSED:
            raise SourceError(f"Kafka refuses: {error.str()}")
        if error.fatal():
            self._rebuild(error.str())
        threading.Event().wait(max(0.0, deadline_s - self.clock.monotonic_s()))

    def _rebuild(self, why: str) -> None:
        """Leave the group and join again with a new consumer; partitions come back as Assigned."""
        metrics.SOURCE_ERRORS.labels(kind="rebuild").inc()
        log.warning("source.rebuild", reason=why)
        old, self._consumer = self._consumer, None
        _close_within(old, 2.0)
        self._callbacks.clear()
        self._callbacks.extend(Revoked(partition) for partition in self._owned)

    def _went_away(self, error: KafkaError) -> None:
        metrics.SOURCE_ERRORS.labels(kind="unavailable").inc()
        if self._away_since_s is None:
            self._away_since_s = self.clock.monotonic_s()
            log.warning("source.unavailable", error=error.str()[:500])

    def _came_back(self) -> None:
        self._heard_s = self.clock.monotonic_s()
        if self._away_since_s is not None:
            self._away_since_s = None
            log.info("source.available")

    def _ask_if_silent(self) -> None:
        """Silence says nothing: a broker may hang, and a member without partitions hears nothing at all."""
        now_s = self.clock.monotonic_s()
        if now_s - self._heard_s < CONFIRMED_S or now_s - self._asked_s < ASK_AGAIN_S:
            return
        self._asked_s = now_s
        try:
            self._consumer.list_topics(self.settings.topics[0], timeout=CONFIRM_TIMEOUT_S)
            self._came_back()
        except KafkaException as error:
            if now_s - self._heard_s >= AWAY_S:
                self._went_away(error.args[0])

    def away_s(self) -> float:
        since_s = self._away_since_s
        return 0.0 if since_s is None else self.clock.monotonic_s() - since_s

    # ------------------------------------------------------------------------- the rest of the contract

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
            with contextlib.suppress(KafkaException):  # revoked meanwhile
                change([TopicPartition(*partition)])

    def commit(self, offsets: dict[Partition, int]) -> None:
        wanted = [TopicPartition(*p, offset) for p, offset in offsets.items() if p in self._owned]
        if self._consumer is None or not wanted:
            return
        try:
            self._consumer.commit(offsets=wanted, asynchronous=True)
        except KafkaException as error:
            _on_commit(error.args[0], wanted)

    def progress(self) -> dict[Partition, Progress]:
        """A partition is shown at its end only if the broker has said so within the last seconds."""
        shown: dict[Partition, Progress] = {}
        for partition, owned in self._owned.items():
            if not owned.started or owned.from_configured_start or self._consumer is None:
                continue
            end: int | None = None
            with contextlib.suppress(KafkaException):
                found = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
                end = int(found[1]) if found is not None and found[1] >= 0 else None
            if end is not None and owned.position >= end:
                end = self._confirm(partition)
            shown[partition] = Progress(owned.position, end, owned.paused)
        return shown

    def _confirm(self, partition: Partition) -> int | None:
        now_s = self.clock.monotonic_s()
        end, at_s = self._confirmed.get(partition, (0, float("-inf")))
        if now_s - at_s >= CONFIRMED_S:
            found = None if self._away_since_s is not None else self._ends(partition, CONFIRM_TIMEOUT_S)
            if found is None:
                return None
            end = found[1]
            self._confirmed[partition] = end, now_s
        return end

    def close(self, timeout_s: float = 5.0) -> None:
        if not self._closed:
            self._closed = True
            _close_within(self._consumer, timeout_s)
            self._consumer = None
            self._owned.clear()


def _on_commit(error: KafkaError | None, _: list[Any]) -> None:
    if error is not None:
        metrics.SOURCE_ERRORS.labels(kind="commit").inc()
        log.info("source.commit_failed", error=error.str()[:300])


class _Quiet:
    """Takes librdkafka's own log lines; what matters of them arrives as errors."""

    def log(self, level: int, message: str, *values: object) -> None:
        log.debug("librdkafka", level=level, message=message % values if values else message)


def _close_within(consumer: Any, timeout_s: float) -> None:
    if consumer is None:
        return

    def close() -> None:
        with contextlib.suppress(Exception):
            consumer.close()

    thread = threading.Thread(target=close, name="kafka-close", daemon=True)
    thread.start()
    thread.join(timeout_s)
