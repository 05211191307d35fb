"""Bytes -> columns: what the compiled scanner takes, and what msgspec has to look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.assembly import Dictionaries, fill, request_key
from monitor.config import RecordSettings, SourceSettings, WindowSettings
from monitor.formats import native
from monitor.formats.scan import SLOW, TAKEN, TOMBSTONE, TOO_LARGE, Scan, room
from monitor.record_types import (
    NUMBER_FIELDS,
    REJECT_REASONS,
    TEXT_FIELDS,
    RecordColumns,
    RejectedRecord,
    RequestIds,
    TextColumn,
)
from monitor.sources.base import RawBatch

__all__ = [
    "NUMBER_FIELDS",
    "REJECT_REASONS",
    "TEXT_FIELDS",
    "Decoder",
    "RecordColumns",
    "RejectedRecord",
    "TextColumn",
    "request_key",
]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Decoder:
    """Messages of one format -> columns and rejected records. Never raises for what a message holds.

    One for each partition: it remembers which user metrics it has seen, to keep at most `max_metrics`;
    values of further names are dropped and counted in `ignored_metrics`.
    """

    def __init__(self, record: RecordSettings, source: SourceSettings, window: WindowSettings) -> None:
        self.max_metrics = record.max_metrics
        self.max_record_bytes = source.max_record_bytes
        self.max_future_skew_ms = round(window.max_future_skew_s * 1000)
        self.ignored_metrics = 0
        self.rows_by_hand = 0  # that the compiled scanner left to msgspec
        self._metric_names: dict[str, None] = {}

    def decode(self, batch: RawBatch, *, now_ms: int) -> tuple[RecordColumns, list[RejectedRecord]]:
        """Accepted and rejected records, each in offset order; together they are the whole batch."""
        from monitor.formats import scanner

        out = room(len(batch))
        buffer = np.frombuffer(batch.buffer, np.uint8)
        refused: dict[int, str] = {}  # position in the batch -> reason, "" = to be found out
        left = scanner.scan(buffer, batch.starts, batch.ends, self.max_record_bytes, out)
        texts = Dictionaries(batch.buffer, out)
        if left:
            refused |= dict.fromkeys(np.flatnonzero(out.state == TOMBSTONE).tolist(), "tombstone")
            refused |= dict.fromkeys(np.flatnonzero(out.state == TOO_LARGE).tolist(), "too_large")
            self._read_by_hand(batch, out, texts, refused)
        keep = self._in_time(out, refused, now_ms)
        columns = self._columns(batch, out, texts, keep)
        return columns, [_rejected(batch, row, refused[row]) for row in sorted(refused)]

    def _read_by_hand(self, batch: RawBatch, out: Scan, texts: Dictionaries, refused: dict[int, str]) -> None:
        """The rows that the scanner left alone: into the same columns, or refused."""
        buffer = memoryview(batch.buffer)
        rows: list[int] = []
        records: list[native.Record] = []
        for row in np.flatnonzero(out.state == SLOW).tolist():
            value = buffer[int(batch.starts[row]) : int(batch.ends[row])]
            record = native.parse(value)
            if record is None or (b"\\u0000" in bytes(value) and native.has_nul(record)):
                refused[row] = ""
            else:
                rows.append(row)
                records.append(record)
        self.rows_by_hand += len(rows)
        if rows:
            fill(out, texts, rows, records)
            out.state[rows] = TAKEN

    def _in_time(self, out: Scan, refused: dict[int, str], now_ms: int) -> Bool:
        """[n], which rows are records whose time can be true."""
        low, high = (1000 * s for s in native.EPOCH_SPAN_S)
        keep = out.state == TAKEN
        outside = keep & ((out.timestamp_ms < low) | (out.timestamp_ms >= high))
        future = keep & ~outside & (out.timestamp_ms > now_ms + self.max_future_skew_ms)
        refused |= dict.fromkeys(np.flatnonzero(outside).tolist(), "timestamp_out_of_range")
        refused |= dict.fromkeys(np.flatnonzero(future).tolist(), "timestamp_in_future")
        return np.asarray(keep & ~(outside | future))

    def _columns(self, batch: RawBatch, out: Scan, texts: Dictionaries, keep: Bool) -> RecordColumns:
        rows: Bool | slice = slice(None) if keep.all() else keep
        text = {name: TextColumn(out.codes[i, rows], texts.values[i]) for i, name in enumerate(TEXT_FIELDS)}
        status = out.status[rows]
        is_error = (status >= 400) | ((status == 0) & (text["error_type"].codes >= 0))
        return RecordColumns(
            partition=batch.partition,
            offsets=batch.offsets[rows],
            timestamp_ms=out.timestamp_ms[rows],
            text=text,
            numbers={name: out.numbers[i, rows] for i, name in enumerate(NUMBER_FIELDS)},
            status=status,
            is_error=is_error.astype(np.int8),
            correct=out.correct[rows],
            request_key=out.key[rows],
            request_ids=RequestIds(batch.buffer, out.id_start[rows], out.id_end[rows], texts.request_ids),
            metrics=self._metrics(texts, keep),
        )

    def _metrics(self, texts: Dictionaries, keep: Bool) -> dict[str, Float64]:
        rows, codes, values = texts.metrics()
        if not len(rows):
            return {}
        kept = keep[rows]
        rows, codes, values = rows[kept], codes[kept], values[kept]
        place = np.cumsum(keep) - 1
        known = self._metric_names
        columns: dict[str, Float64] = {}
        found, first = np.unique(codes, return_index=True)
        for code in found[np.argsort(first)].tolist():
            name, own = texts.names[code], codes == code
            if name not in known:
                if len(known) >= self.max_metrics:
                    self.ignored_metrics += int(np.count_nonzero(own))
                    continue
                known[name] = None
            column = np.full(int(np.count_nonzero(keep)), np.nan)
            column[place[rows[own]]] = values[own]
            columns[name] = column
        return columns


def _rejected(batch: RawBatch, row: int, reason: str) -> RejectedRecord:
    offset = int(batch.offsets[row])
    if reason == "tombstone":
        return RejectedRecord(batch.partition, offset, reason, "")
    start, end = int(batch.starts[row]), int(batch.ends[row])
    value = bytes(batch.buffer[start : min(end, start + 4096)] if reason else batch.buffer[start:end])
    return RejectedRecord(batch.partition, offset, reason or native.refusal(value), native.sample(value))
