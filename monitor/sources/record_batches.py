"""Kafka's record batches -> `RawBatch`, without an object per record.

`RecordBatches` takes the place of the class in which kafka-python's fetcher unpacks a response
(`Fetcher.PartitionRecords`): the same walk over batches, checksums, aborted transactions and control
records, but the values of all records are found in one compiled scan and stay where they are.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import crc32c
import numpy as np
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords

from monitor.sources import decompression
from monitor.sources.base import Partition, RawBatch
from monitor.sources.batches import cut, pack
from monitor.sources.decompression import CompressionBombError

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, (two times), producer id,
# (producer epoch, base sequence), records
HEADER = struct.Struct(">qiibIhi16xq6xi")
OVERHEAD = 12  # base offset and length, which the length does not count
CRC_FROM = 21  # the attributes
CODEC, TRANSACTIONAL, CONTROL = 0x07, 0x10, 0x20
DECOMPRESS: dict[int, Callable[[Any], bytes]] = {
    1: decompression.gzip,
    2: decompression.snappy,
    3: decompression.lz4,
    4: decompression.zstd,
}
MIN_RECORD_BYTES = 7
MIN_BATCH_BYTES = 14  # of the oldest format, without OVERHEAD
CHUNK_BYTES = 16 << 20  # unpacked at once, so that a well-packed response does not fill the memory


class CorruptBatchError(Exception):
    """A batch whose checksum or structure is wrong."""


class UnreadableBatchError(Exception):
    """The batch that holds the offsets from `first` up to, not including, `end` cannot be read: `reason`."""

    def __init__(self, partition: Partition, first: int, end: int, reason: str) -> None:
        super().__init__(f"{partition} from {first} up to {end}: {reason}")
        self.partition, self.first, self.end, self.reason = partition, first, end, reason


@dataclass(slots=True)
class Budget:
    """How many records the caller still wants; shared by all responses of one consumer."""

    rows: int = 0


class _Batch(NamedTuple):
    """One record batch (magic 2) inside a response."""

    start: int
    end: int
    base_offset: int
    next_offset: int
    leader_epoch: int
    attributes: int
    producer_id: int
    records: int


class RecordBatches:
    """One partition's part of a fetch response, handed out as RawBatch of at most `budget.rows` records.

    Keeps to what kafka-python's fetcher asks of its own class. What cannot be read raises from `take`, again
    and again for the same batch: UnreadableBatchError where its header can be believed, otherwise
    CorruptBatchError and whatever the codecs raise.
    """

    def __init__(
        self,
        budget: Budget,
        fetch_offset: int,
        tp: Any,
        records: Any,
        *,
        isolation_level: Any = IsolationLevel.READ_UNCOMMITTED,
        aborted_transactions: Any = None,
        metric_aggregator: Any = None,
        on_drain: Callable[[Any], None] = lambda _: None,
        **_: Any,
    ) -> None:
        self.topic_partition = tp
        self.fetch_offset = self.next_fetch_offset = fetch_offset
        self.leader_epoch = -1
        self.bytes_read = self.records_read = 0
        self._budget = budget
        self._partition = Partition(tp.topic, tp.partition)
        self._data = _own(memoryview(records._buffer))
        self._at = 0
        self._rest: RawBatch | None = None  # cut out, not handed out yet
        self._open = True
        self._committed_only = isolation_level == IsolationLevel.READ_COMMITTED
        ordered = sorted(aborted_transactions or [], key=lambda transaction: transaction.first_offset)
        self._to_abort = deque((each.first_offset, each.producer_id) for each in ordered)
        self._aborted: set[int] = set()
        self._metrics, self._on_drain = metric_aggregator, on_drain

    def __bool__(self) -> bool:
        return self._open

    def drain(self) -> None:
        """Nothing more will be asked of this response."""
        if self._open:
            self._open = False
            self._rest, self._data = None, memoryview(b"")
            if self._metrics:
                self._metrics.record(self.topic_partition, self.bytes_read, self.records_read)
            self._on_drain(self)

    def take(self, n: int | None = None) -> list[RawBatch]:
        """One batch of messages, or one without any that tells of a hole in the offsets; none at the end."""
        before = self.next_fetch_offset
        while self._rest is None:
            if not self._more():
                self.drain()
                if self.next_fetch_offset == before:
                    return []
                return [pack(self._partition, [], [], self.next_fetch_offset)]
        rows, batch = max(self._budget.rows, 1), self._rest
        self._rest = cut(batch, rows, len(batch)) if rows < len(batch) else None
        found = cut(batch, 0, rows)
        self.next_fetch_offset = found.next_offset
        self.records_read += len(found)
        if self._rest is None and self._peek() is None:
            self.drain()
        return [found]

    def _peek(self) -> tuple[int, int] | None:
        """(start, end) of the next whole batch of the response."""
        if len(self._data) - self._at < OVERHEAD:
            return None
        (length,) = struct.unpack_from(">i", self._data, self._at + 8)
        end = self._at + OVERHEAD + length
        return (self._at, end) if end <= len(self._data) else None

    def _more(self) -> bool:
        """Cut out the next messages into _rest (None: a stretch without any). False at the end."""
        place = self._peek()
        if place is None:
            return False
        start, end = place
        if end - start < OVERHEAD + MIN_BATCH_BYTES:
            raise CorruptBatchError(f"{self._partition}: a batch of {end - start} bytes")
        if end - start < HEADER.size or self._data[start + 16] < 2:
            self._rest = self._legacy(start, end)
            self._at, self.bytes_read = end, self.bytes_read + end - start
            self.next_fetch_offset = max(self.next_fetch_offset, self._rest.next_offset)
            if not len(self._rest):
                self._rest = None
            return True
        self._rest = self._chunk()
        return True

    def _legacy(self, start: int, end: int) -> RawBatch:
        """Messages of the formats before Kafka 0.11, by kafka-python itself."""
        batch = MemoryRecords(self._data[start:end]).next_batch()
        offsets, values, last = [], [], self.next_fetch_offset - 1
        if not batch.validate_crc():
            raise CorruptBatchError(f"{self._partition}: a message set with a wrong checksum")
        for record in batch:
            if not record.validate_crc():
                raise CorruptBatchError(f"{self._partition} at {record.offset}: wrong checksum")
            last = max(last, record.offset)
            if record.offset >= self.fetch_offset:
                offsets.append(record.offset)
                values.append(record.value)
        return pack(self._partition, offsets, values, last + 1)

    def _chunk(self) -> RawBatch | None:
        """Whole batches of one kind (as they are, or unpacked) until there are enough records."""
        pieces: list[Any] = []
        places: list[tuple[int, int, int, int]] = []  # base offset, records, start, end
        origins: list[tuple[int, int]] = []  # (start, end) in the response
        rows = size = 0
        packed: bool | None = None
        while rows < self._budget.rows and size < CHUNK_BYTES and (place := self._peek()) is not None:
            if place[1] - place[0] < HEADER.size or self._data[place[0] + 16] < 2:
                break
            try:
                batch = self._checked(*place)
                wanted = self._wanted(batch)
                codec = batch.attributes & CODEC
                if wanted and packed not in (None, codec > 0):
                    break
                start, end = batch.start + HEADER.size, batch.end
                if wanted and codec:
                    piece = self._unpacked(codec, start, end)
                    pieces.append(piece)
                    start, end = size, size + len(piece)
                if wanted and not 0 <= batch.records <= (end - start) // MIN_RECORD_BYTES:
                    raise CorruptBatchError(f"{self._partition} at {batch.base_offset}: impossible count")
            except Exception as error:
                if rows:
                    break  # what stands before it goes out first
                self._name(*place, error)
                raise
            if wanted:
                packed = codec > 0
                places.append((batch.base_offset, batch.records, start, end))
                origins.append(place)
                rows, size = rows + batch.records, size + end - start
            self._step_over(batch)
        if not rows:
            return None
        buffer = memoryview(b"".join(pieces)) if packed else self._data
        return self._cut_out(buffer, places, origins)

    def _step_over(self, batch: _Batch) -> None:
        """The batch is accounted for; transactions that it ends or belongs to are remembered."""
        self._at = batch.end
        self.bytes_read += batch.end - batch.start
        self.leader_epoch = batch.leader_epoch
        self.next_fetch_offset = batch.next_offset
        if self._committed_only and batch.producer_id >= 0:
            self._begin_aborted(batch)
            if batch.attributes & CONTROL and self._is_abort(batch):
                self._aborted.discard(batch.producer_id)

    def _checked(self, start: int, end: int) -> _Batch:
        fields = HEADER.unpack_from(self._data, start)
        base_offset, _, leader_epoch, _, crc, attributes, last_delta, producer_id, records = fields
        if crc32c.crc32c(self._data[start + CRC_FROM : end]) != crc:
            raise CorruptBatchError(f"{self._partition} at {base_offset}: wrong checksum")
        next_offset = base_offset + last_delta + 1
        return _Batch(start, end, base_offset, next_offset, leader_epoch, attributes, producer_id, records)

    def _wanted(self, batch: _Batch) -> bool:
        """False for control records and for what belongs to an aborted transaction."""
        if batch.attributes & CONTROL:
            return False
        if not self._committed_only or batch.producer_id < 0:
            return True
        self._begin_aborted(batch)
        return not (batch.attributes & TRANSACTIONAL and batch.producer_id in self._aborted)

    def _begin_aborted(self, batch: _Batch) -> None:
        while self._to_abort and self._to_abort[0][0] < batch.next_offset:
            self._aborted.add(self._to_abort.popleft()[1])

    def _is_abort(self, batch: _Batch) -> bool:
        record = next(MemoryRecords(self._data[batch.start : batch.end]).next_batch(), None)
        return bool(record and record.abort)

    def _unpacked(self, codec: int, start: int, end: int) -> bytes:
        if codec not in DECOMPRESS:
            raise CorruptBatchError(f"{self._partition}: unknown codec {codec}")
        return DECOMPRESS[codec](self._data[start:end])

    def _cut_out(
        self, buffer: memoryview, places: list[tuple[int, int, int, int]], origins: list[tuple[int, int]]
    ) -> RawBatch | None:
        """The records of whole batches; where one does not hold what it says, of those before it."""
        from monitor.sources.cutting import cut_out

        rows = sum(records for _, records, _, _ in places)
        offsets, starts, ends = (np.empty(rows, np.int64) for _ in range(3))
        data, batches = np.frombuffer(buffer, np.uint8), np.array(places, np.int64)
        kept = cut_out(data, batches, self.fetch_offset, offsets, starts, ends)
        if kept < 0:
            bad = -kept - 1
            self._at, self.next_fetch_offset = origins[bad][0], max(places[bad][0], self.fetch_offset)
            if bad:
                return self._cut_out(buffer, places[:bad], origins[:bad])
            error = CorruptBatchError(f"{self._partition} at {places[bad][0]}: records do not fit")
            self._name(*origins[bad], error)
            raise error
        if kept == 0:
            return None
        return RawBatch(
            self._partition, offsets[:kept], buffer, starts[:kept], ends[:kept], self.next_fetch_offset
        )

    def _name(self, start: int, end: int, error: Exception) -> None:
        """Raise UnreadableBatchError if the header of the batch can be believed.

        It can where its checksum is right, and where the batch behind it is sound and begins at its end.
        """
        found = self._extent(start, end)
        if found is None:
            return
        (first, until), sound = found
        if not sound:
            behind = None
            if end + HEADER.size <= len(self._data):
                (length,) = struct.unpack_from(">i", self._data, end + 8)
                behind = self._extent(end, min(end + OVERHEAD + max(length, 0), len(self._data)))
            if behind is None or not behind[1] or behind[0][0] != until:
                return
        reason = "compression_bomb" if isinstance(error, CompressionBombError) else "corrupt_batch"
        raise UnreadableBatchError(self._partition, first, until, reason) from error

    def _extent(self, start: int, end: int) -> tuple[tuple[int, int], bool] | None:
        """(offsets that a header claims, is its checksum right); None if there is no such header."""
        if end - start < HEADER.size or self._data[start + 16] != 2:
            return None
        base_offset, _, _, _, crc, _, last_delta, *_ = HEADER.unpack_from(self._data, start)
        if base_offset < 0 or last_delta < 0:
            return None
        sound = crc32c.crc32c(self._data[start + CRC_FROM : end]) == crc
        return (base_offset, base_offset + last_delta + 1), sound


def _own(data: memoryview) -> memoryview:
    """The bytes of one partition; copied where they are less than half of what they would keep in memory."""
    return data if 2 * data.nbytes >= memoryview(data.obj).nbytes else memoryview(bytes(data))


__all__ = [
    "Budget",
    "CompressionBombError",
    "CorruptBatchError",
    "RecordBatches",
    "UnreadableBatchError",
]
