"""Whole record batches, held against kafka-python's own unpacking of the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.memory_records import MemoryRecordsBuilder

from monitor import metrics
from monitor.sources import decompression, readers
from monitor.sources.record_batches import Budget, CorruptBatchError, RecordBatches, UnreadableBatchError

TP = TopicPartition("t", 0)
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
Row = tuple[int, bytes | None]
Message = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]


def batch_of(
    base: int,
    messages: Sequence[Message],
    *,
    codec: int = NONE,
    magic: int = 2,
    producer: int = -1,
    control: bool = False,
    holes: Sequence[int] = (),
    tail: int = 0,
) -> bytes:
    """One batch at offset `base`; `holes[i]` offsets are missing before message i, `tail` behind the last."""
    extra: dict[str, Any] = {}
    if magic == 2 and producer >= 0:
        extra = {"transactional": True, "producer_id": producer, "producer_epoch": 0, "base_sequence": 0}
    first = base if magic < 2 else 0
    builder = MemoryRecordsBuilder(
        magic=magic, compression_type=codec, batch_size=1 << 24, offset=first, **extra
    )
    for i, (key, value, headers) in enumerate(messages):
        builder.skip(holes[i] if i < len(holes) else 0)
        builder.append(1_000, key, value, headers if magic == 2 else [])
    last = builder.next_offset() - 1
    builder.close()
    data = bytearray(builder.buffer())
    if magic < 2:
        return bytes(data)
    (attributes,) = struct.unpack_from(">h", data, 21)
    struct.pack_into(">q", data, 0, base)
    struct.pack_into(">hi", data, 21, attributes | (0x20 if control else 0), last + tail)
    struct.pack_into(">I", data, 17, crc32c.crc32c(bytes(data[21:])))
    return bytes(data)


def marker(base: int, producer: int, *, commit: bool) -> bytes:
    """A control batch that ends a transaction."""
    return batch_of(
        base, [(struct.pack(">hh", 0, int(commit)), b"\0\0\0\0\0\0", [])], producer=producer, control=True
    )


def ours(data: bytes, start: int = 0, rows: int = 1 << 20, aborted: Any = ()) -> tuple[list[Row], int]:
    part = RecordBatches(
        Budget(rows), start, TP, MemoryRecords(data),
        isolation_level=IsolationLevel.READ_COMMITTED, aborted_transactions=aborted,
    )  # fmt: skip
    found: list[Row] = []
    while part:
        for batch in part.take(1):
            assert len(batch) <= rows
            assert (
                not len(batch) or batch.next_offset > batch.offsets[-1]
            )  # empty: nothing of it is handed out
            found += [(int(batch.offsets[i]), batch.value(i)) for i in range(len(batch))]
            assert part.next_fetch_offset == batch.next_offset
    return found, part.next_fetch_offset


def theirs(data: bytes, start: int = 0, aborted: Any = ()) -> tuple[list[Row], int]:
    part = Fetcher.PartitionRecords(
        start, TP, MemoryRecords(data),
        isolation_level=IsolationLevel.READ_COMMITTED, aborted_transactions=aborted,
    )  # fmt: skip
    return [(record.offset, record.value) for record in part.take()], part.next_fetch_offset


content = st.none() | st.binary(max_size=40) | st.binary(min_size=130, max_size=300)
headers = st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=4)), max_size=2)
message = st.tuples(st.none() | st.binary(max_size=200), content, headers)
batch = st.fixed_dictionaries(
    {
        "messages": st.lists(message, min_size=1, max_size=6),
        "codec": st.sampled_from([NONE, NONE, GZIP, SNAPPY, LZ4, ZSTD]),
        "producer": st.sampled_from([-1, -1, 1, 2]),
        "holes": st.lists(st.integers(0, 3), max_size=6),
        "tail": st.integers(0, 2),
    }
)
log = st.lists(batch | st.tuples(st.integers(1, 2), st.booleans()), min_size=1, max_size=6)


def written(parts: list[Any], gap: int) -> tuple[bytes, int]:
    """The bytes of a log and its end; a pair is the end of a transaction."""
    data, base = b"", 5
    for part in parts:
        if isinstance(part, tuple):
            data += marker(base, part[0], commit=part[1])
            base += 1 + gap
        else:
            data += batch_of(base, **part)
            base += sum(part["holes"][: len(part["messages"])]) + len(part["messages"]) + part["tail"] + gap
    return data, base


@settings(max_examples=150, deadline=None)
@given(
    log,
    st.integers(0, 2),
    st.integers(0, 30),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 25), st.integers(1, 2)), max_size=3),
    st.integers(0, 60),
)
def test_the_same_messages_as_the_client_itself(
    parts: list[Any], gap: int, start: int, rows: int, aborted: list[tuple[int, int]], lost: int
) -> None:
    """With holes, a start inside a batch, aborted transactions, and a response that ends inside a batch."""
    data, _ = written(parts, gap)
    data = data[: max(len(data) - lost, 0)] if lost < 40 else data
    transactions = [SimpleNamespace(first_offset=o, producer_id=p) for o, p in aborted]
    expected, end = theirs(data, start, transactions)
    found, position = ours(data, start, rows, transactions)
    assert found == [row for row in expected if row[0] >= start]
    assert position >= end or not found


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [NONE, GZIP])
def test_old_message_formats_are_read_by_the_client(magic: int, codec: int) -> None:
    old = batch_of(3, [(b"k", b"v%d" % i, []) for i in range(4)], magic=magic, codec=codec)
    new = batch_of(7, [(None, b"new", [])])
    assert ours(old + new, 4) == theirs(old + new, 4)
    assert ours(old + new)[0][-1] == (7, b"new")


@settings(max_examples=60, deadline=None)
@given(st.lists(message, min_size=1, max_size=4), st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_never_handed_out(messages: list[Message], at: int, flip: int) -> None:
    good, bad = batch_of(0, [(None, b"good", [])]), bytearray(batch_of(1, messages))
    place = 21 + at % (len(bad) - 21)
    bad[place] ^= flip
    part = RecordBatches(Budget(100), 0, TP, MemoryRecords(good + bytes(bad)))
    assert [b.value(0) for b in part.take()] == [b"good"]
    for _ in range(2):
        with pytest.raises(CorruptBatchError):
            part.take()
    assert part.next_fetch_offset == 1


def lying(base: int, messages: Sequence[Message]) -> bytes:
    """A batch with a right checksum that says it holds one record more than it does."""
    data = bytearray(batch_of(base, messages))
    struct.pack_into(">i", data, 57, len(messages) + 1)
    struct.pack_into(">I", data, 17, crc32c.crc32c(bytes(data[21:])))
    return bytes(data)


def test_records_that_do_not_fit_their_batch_are_refused_and_no_others() -> None:
    """What stands in the same response before the batch and behind it can be read."""
    good = [batch_of(base, [(None, b"good-%d" % base, [])] * 3) for base in (0, 3, 8)]
    data = good[0] + good[1] + lying(6, [(None, b"abc" * 9, [])] * 2) + good[2]
    part = RecordBatches(Budget(100), 0, TP, MemoryRecords(data))
    assert [int(o) for b in part.take() for o in b.offsets] == [0, 1, 2, 3, 4, 5]
    for _ in range(2):
        with pytest.raises(UnreadableBatchError) as raised:
            part.take()
        error = raised.value
        assert (error.first, error.end, error.reason) == (6, 8, "corrupt_batch")
    assert part.next_fetch_offset == 6
    assert ours(data[-len(good[2]) :], 8)[0] == [(8 + i, b"good-8") for i in range(3)]


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_unpacking_is_bounded(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb of two messages is named with its offsets, and nothing between two bombs with them."""
    monkeypatch.setattr(decompression, "MAX_BATCH_BYTES", 1 << 16)
    assert len(ours(batch_of(0, [(None, bytes(50_000), [])], codec=codec))[0]) == 1
    bombs = [batch_of(base, [(None, bytes(50_000), [])] * 2, codec=codec) for base in (0, 3)]
    data = bombs[0] + batch_of(2, [(None, b"between", [])], codec=codec) + bombs[1]
    for start, expected in ((0, (0, 2)), (1, (0, 2)), (3, (3, 5)), (4, (3, 5))):
        with pytest.raises(UnreadableBatchError) as raised:
            ours(data[0 if start < 3 else len(data) - len(bombs[1]) :], start)
        assert (raised.value.first, raised.value.end) == expected
        assert raised.value.reason == "compression_bomb"
    part = RecordBatches(Budget(1), 2, TP, MemoryRecords(data[len(bombs[0]) :]))
    assert [b.value(0) for b in part.take()] == [b"between"]


@pytest.mark.parametrize("place", ["delta", "content"])
def test_a_wrong_checksum_names_its_offsets_where_the_next_batch_agrees(place: str) -> None:
    bad = bytearray(batch_of(4, [(None, b"abc", [])] * 3))
    bad[26 if place == "delta" else 70] ^= 1  # the last offset delta, or a record
    data = bytes(bad) + batch_of(7, [(None, b"behind", [])])
    part = RecordBatches(Budget(100), 4, TP, MemoryRecords(data))
    with pytest.raises(UnreadableBatchError if place == "content" else CorruptBatchError) as raised:
        part.take()
    if isinstance(raised.value, UnreadableBatchError):
        assert (raised.value.first, raised.value.end) == (4, 7)


def test_an_untested_client_is_read_by_its_public_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(readers.make_reader("batches"), readers.BatchReader)
    assert isinstance(readers.make_reader("poll"), readers.PollReader)
    counted = metrics.SOURCE_ERRORS.labels(kind="reader_fallback")
    before = counted._value.get()
    monkeypatch.setattr(readers.kafka, "__version__", "3.0.99")
    assert isinstance(readers.make_reader("batches"), readers.PollReader)
    assert counted._value.get() == before + 1
