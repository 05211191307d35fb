"""Batches that are already in memory: for generated logs and for tests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from monitor.sources.base import Assigned, EndOfLog, Event, Gap, Partition, Progress, RawBatch, Revoked
from monitor.sources.batches import cut, row_of


@dataclass
class _Log:
    batches: list[RawBatch] = field(default_factory=list)
    position: int = 0
    batch: int = 0  # the one that holds `position`
    started: bool = False
    paused: bool = True
    ended: bool = False

    @property
    def first(self) -> int:
        return int(self.batches[0].offsets[0]) if self.batches and len(self.batches[0]) else 0

    @property
    def end(self) -> int:
        return self.batches[-1].next_offset if self.batches else 0


class MemorySource:
    """Hands out given batches; more may be added while it is read.

    A bounded source (the default) ends every partition with EndOfLog once its batches are handed out.
    """

    def __init__(self, batches: Iterable[RawBatch] = (), *, bounded: bool = True) -> None:
        self.bounded = bounded
        self.committed: dict[Partition, int] = {}
        self._logs: dict[Partition, _Log] = {}
        self._events: deque[Event] = deque()
        for batch in batches:
            self.add(batch)

    def add(self, batch: RawBatch) -> None:
        """Append a batch to the log of its partition."""
        log = self._logs.get(batch.partition)
        if log is None:
            log = self._logs[batch.partition] = _Log()
            self._events.append(Assigned(batch.partition))
        assert not log.batches or log.end <= batch.next_offset, "offsets ascend"
        log.batches.append(batch)

    def revoke(self, partition: Partition) -> None:
        """Take a partition away, as a rebalance does."""
        self._logs[partition].started = False
        self._events.append(Revoked(partition))

    def assign(self, partition: Partition) -> None:
        """Give it back."""
        self._events.append(Assigned(partition))

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        for partition, log in self._logs.items():
            if not log.started or log.paused or log.ended or max_records <= 0:
                continue
            batch = self._next(log, max_records)
            if batch is not None:
                max_records -= len(batch)
                events.append(batch)
            elif self.bounded:
                log.ended = True
                events.append(EndOfLog(partition))
        if not events and not self.bounded:
            time.sleep(timeout_s)
        return events

    def _next(self, log: _Log, max_records: int) -> RawBatch | None:
        while log.batch < len(log.batches):
            batch = log.batches[log.batch]
            row = row_of(batch.offsets, log.position)
            if row >= len(batch):
                log.batch += 1
                log.position = max(log.position, batch.next_offset)
                continue
            found = cut(batch, row, row + max_records)
            log.position = found.next_offset
            return found
        return None

    def start(self, partition: Partition, offset: int | None) -> None:
        log = self._logs[partition]
        if offset is not None and offset < log.first:
            self._events.append(Gap(partition, offset, log.first))
        log.position = max(log.first, offset or 0)
        log.batch, log.started, log.paused, log.ended = 0, True, False, False

    def pause(self, partition: Partition) -> None:
        self._logs[partition].paused = True

    def resume(self, partition: Partition) -> None:
        self._logs[partition].paused = False

    def commit(self, offsets: dict[Partition, int]) -> None:
        self.committed.update(offsets)

    def progress(self) -> dict[Partition, Progress]:
        return {
            partition: Progress(log.position, log.end, log.paused)
            for partition, log in self._logs.items()
            if log.started
        }

    def away_s(self) -> float:
        return 0.0

    def close(self, timeout_s: float = 5.0) -> None:
        self._logs.clear()
