"""The batch-shaped source of log messages.

A source hands out events in one list per poll. Messages travel as whole batches: one buffer and
arrays of positions, never an object per message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


FILE_PREFIX = "file:"


def is_file(topic: str) -> bool:
    """Files and standard input: pieces of one log rather than logs, and they wait for whoever writes them."""
    return topic.startswith(FILE_PREFIX)


class Partition(NamedTuple):
    """One ordered log. For a file: topic = FILE_PREFIX + its base name, partition 0, offset = line number."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True, eq=False)
class RawBatch:
    """Messages of one partition in offset order: message i is buffer[starts[i]:ends[i]]."""

    partition: Partition
    offsets: Int64  # [n], strictly ascending; gaps are allowed (compaction, control records)
    buffer: bytes | memoryview  # one-byte items
    starts: Int64  # [n]; -1 = tombstone (no value)
    ends: Int64  # [n]
    next_offset: int  # position after this batch, > offsets[-1]

    def __len__(self) -> int:
        return len(self.offsets)

    def value(self, i: int) -> bytes | None:
        start = int(self.starts[i])
        return None if start < 0 else bytes(self.buffer[start : int(self.ends[i])])


@dataclass(frozen=True, slots=True)
class Assigned:
    """This source now owns the partition. It is paused until `start` is called with an offset."""

    partition: Partition
    topic_id: str | None = None  # identity of the topic, to notice one that was deleted and made anew
    leader_epoch: int | None = None
    partitions: int | None = None  # how many the topic has


@dataclass(frozen=True, slots=True)
class Revoked:
    """The partition is no longer ours: forget it, write nothing."""

    partition: Partition


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages from `first` up to, not including, `end` are gone (retention); reading goes on at `end`."""

    partition: Partition
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A message or batch that the client could not even read; reading goes on behind it."""

    partition: Partition
    first: int
    end: int
    reason: str  # a documented reject reason, e.g. "corrupt_batch", "compression_bomb"


@dataclass(frozen=True, slots=True)
class EndOfLog:
    """A bounded source (a file) has handed out everything of this partition."""

    partition: Partition


Event = RawBatch | Assigned | Revoked | Gap | Undecodable | EndOfLog


@dataclass(frozen=True, slots=True)
class Progress:
    """How far reading is: `position` = next offset to hand out, `end` = high watermark (None: unknown)."""

    position: int
    end: int | None
    paused: bool


class Source(Protocol):
    """Reads partitions. Every call comes from one thread; no call raises for a broker that is away."""

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        """Events in order; at most `timeout_s` (<= 0.5 in the daemon) without any.

        Raises SourceError only for what waiting cannot mend (no such file, authentication refused).
        """
        ...

    def start(self, partition: Partition, offset: int | None) -> None:
        """Begin reading an assigned partition at `offset`; None = the configured start. Resumes it.

        An offset that retention has deleted yields a Gap event on a later poll, then reading goes on
        at the earliest offset there is. Never rewinds or skips silently.
        """
        ...

    def pause(self, partition: Partition) -> None: ...
    def resume(self, partition: Partition) -> None: ...

    def commit(self, offsets: dict[Partition, int]) -> None:
        """Tell lag tools how far the database is. Best effort: logs and counts failures, never raises."""
        ...

    def progress(self) -> dict[Partition, Progress]: ...

    def away_s(self) -> float:
        """For how long no broker has answered; 0 where one does, or where there are none."""
        ...

    def close(self, timeout_s: float = 5.0) -> None:
        """Leave the group and free everything; bounded by `timeout_s` even with a dead broker."""
        ...
