"""Decoding ahead: messages become columns in a thread of their own while what came before is worked on.

The scanner runs without the interpreter's lock, so that on two cores a partition that lags is decoded beside
the windows, the detectors and the database. Nothing else happens in that thread.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from monitor.records import Decoder, RecordColumns, RejectedRecord
from monitor.sources.base import RawBatch

AHEAD_ROWS = 2_000
"""Messages of a batch from which on it pays to hand it over; it also says that more are waiting."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded stretch of a partition: accepted columns and rejected messages up to `next_offset`."""

    records: RecordColumns
    rejected: list[RejectedRecord]
    next_offset: int

    def split(self, row: int) -> tuple[Decoded, Decoded]:
        """Cut before record `row` (0 <= row < len(records)); rejects go where their offsets belong."""
        offset = int(self.records.offsets[row])
        before = [r for r in self.rejected if r.offset < offset]
        after = [r for r in self.rejected if r.offset >= offset]
        left = Decoded(self.records.take(slice(0, row)), before, offset)
        return left, Decoded(self.records.take(slice(row, None)), after, self.next_offset)


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """A batch that is being decoded, or is decoded."""

    messages: int
    ahead: bool  # handed over: there is no hurry
    _result: Future[Decoded]

    @property
    def running(self) -> bool:
        return not self._result.done()

    def result(self) -> Decoded:
        """Waits for it. Raises what the decoder raised."""
        return self._result.result()


@dataclass(slots=True)
class DecodeAhead:
    """One thread for all partitions; the batches of a partition go through its decoder in their order."""

    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "decode"))
    _newest: Decoding | None = None

    def begin(self, decoder: Decoder, raw: RawBatch, now_ms: int) -> Decoding:
        """A small batch is decoded at once, unless it would overtake one that is under way."""
        ahead = len(raw) >= AHEAD_ROWS
        if ahead or (self._newest is not None and self._newest.running):
            result = self._thread.submit(_decode, decoder, raw, now_ms)
        else:
            result = Future()
            result.set_result(_decode(decoder, raw, now_ms))
        self._newest = Decoding(len(raw), ahead, result)
        return self._newest


def _decode(decoder: Decoder, raw: RawBatch, now_ms: int) -> Decoded:
    records, rejected = decoder.decode(raw, now_ms=now_ms)
    return Decoded(records, rejected, raw.next_offset)
