"""Batches that are decoded ahead: the same columns in the same order, and nothing that overtakes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import RecordSettings, SourceSettings, WindowSettings
from monitor.decoding import AHEAD_ROWS, DecodeAhead
from monitor.record_types import RecordColumns, RejectedRecord
from monitor.records import Decoder
from monitor.sources.base import Partition, RawBatch
from monitor.sources.batches import pack

KEY = Partition("log", 0)
NOW_MS = 1_772_409_600_000


def decoder() -> Decoder:
    return Decoder(RecordSettings(max_metrics=2), SourceSettings(), WindowSettings())


def batches(sizes: list[int]) -> Iterator[RawBatch]:
    """Each with a user metric of its own: a decoder keeps the first two names that it meets."""
    first = 0
    for which, size in enumerate(sizes):
        record = {"timestamp": NOW_MS, "model": "m", "metrics": {f"metric_{which}": 1.0}}
        messages = [json.dumps(record).encode()] * (size - 1) + [b"no record"]
        yield pack(KEY, range(first, first + size), messages)
        first += size


def told(records: RecordColumns, rejected: list[RejectedRecord]) -> tuple[object, ...]:
    return (records.offsets.tolist(), records.timestamp_ms.tolist(), sorted(records.metrics), rejected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 5, AHEAD_ROWS - 1, AHEAD_ROWS, 3 * AHEAD_ROWS]), min_size=1, max_size=6))
def test_ahead_or_at_once_gives_the_same_in_the_same_order(sizes: list[int]) -> None:
    one, other, ahead = decoder(), decoder(), DecodeAhead()
    under_way = [ahead.begin(one, raw, NOW_MS) for raw in batches(sizes)]
    for raw, waiting in zip(batches(sizes), under_way, strict=True):
        decoded = waiting.result()
        wanted = other.decode(raw, now_ms=NOW_MS)
        assert told(decoded.records, decoded.rejected) == told(*wanted)
        assert (decoded.next_offset, waiting.messages) == (raw.next_offset, len(raw))
        assert waiting.ahead == (len(raw) >= AHEAD_ROWS)


def test_a_small_batch_does_not_overtake_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, goes_on, order, decode = decoder(), threading.Event(), [], Decoder.decode

    def slow(self: Decoder, raw: RawBatch, *, now_ms: int) -> tuple[RecordColumns, list[RejectedRecord]]:
        if len(raw) >= AHEAD_ROWS:
            assert goes_on.wait(10)
        order.append(len(raw))
        return decode(self, raw, now_ms=now_ms)

    monkeypatch.setattr(Decoder, "decode", slow)
    ahead = DecodeAhead()
    large, small = (ahead.begin(one, raw, NOW_MS) for raw in batches([AHEAD_ROWS, 3]))
    assert large.running and small.running and not order
    goes_on.set()
    assert small.result().next_offset == AHEAD_ROWS + 3
    assert order == [AHEAD_ROWS, 3]
    assert not ahead.begin(one, next(batches([2])), NOW_MS).running  # nothing is under way: at once


def test_what_the_decoder_raises_reaches_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Decoder, "decode", broken)
    waiting = DecodeAhead().begin(decoder(), next(batches([AHEAD_ROWS])), NOW_MS)
    with pytest.raises(MemoryError, match="no room"):
        waiting.result()
