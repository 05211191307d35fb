"""Bytes -> columns.

`RecordColumns` is the only form in which records travel behind the decoder: one array per field, one
entry per record, strings as codes into a small table. Nothing downstream holds an object per record.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import crc32c
import msgspec
import numpy as np
import numpy.typing as npt

from monitor.config import RecordSettings, SourceSettings, WindowSettings
from monitor.formats import native
from monitor.sources.base import Partition, RawBatch

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
UInt64 = npt.NDArray[np.uint64]

TEXT_FIELDS: tuple[str, ...] = (
    "model",
    "model_version",
    "endpoint",
    "tenant",
    "region",
    "error_type",
    "finish_reason",
)
NUMBER_FIELDS: tuple[str, ...] = (
    "latency_ms",
    "ttft_ms",
    "tpot_ms",
    "queue_ms",
    "input_tokens",
    "output_tokens",
    "memory_mb",
    "gpu_util",
    "confidence",
    "cost_usd",
)


@dataclass(frozen=True, slots=True, eq=False)
class TextColumn:
    """A dictionary-encoded string column: record i is values[codes[i]]; code -1 = absent."""

    codes: Int32  # [n]
    values: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class RecordColumns:
    """n accepted records of one partition in offset order."""

    partition: Partition
    offsets: Int64  # [n]
    timestamp_ms: Int64  # [n], event time, ms since the epoch
    text: dict[str, TextColumn]  # every name of TEXT_FIELDS
    numbers: dict[str, Float64]  # every name of NUMBER_FIELDS, [n], NaN = absent
    status: Int32  # [n], HTTP code; 200 for "ok", 500 for "error", 0 = absent
    is_error: Int8  # [n], 1 = status "error" or code >= 400, or no status but an error_type
    correct: Int8  # [n], 1/0 = prediction equals/differs from label, -1 = no label
    request_key: UInt64  # [n], 64-bit hash of request_id, stable across processes; 0 = no request_id
    request_ids: list[str | None]  # [n], kept only to name exemplars
    metrics: dict[str, Float64] = field(default_factory=dict)  # user metrics, [n], NaN = absent

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, rows: slice | npt.NDArray[Any]) -> RecordColumns:
        """Some of the records: a slice, a boolean mask [n] or ascending row numbers. Tables are shared."""
        if isinstance(rows, slice):
            request_ids = self.request_ids[rows]
        else:
            chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
            request_ids = [self.request_ids[i] for i in chosen.tolist()]
        return RecordColumns(
            partition=self.partition,
            offsets=self.offsets[rows],
            timestamp_ms=self.timestamp_ms[rows],
            text={name: TextColumn(column.codes[rows], column.values) for name, column in self.text.items()},
            numbers={name: column[rows] for name, column in self.numbers.items()},
            status=self.status[rows],
            is_error=self.is_error[rows],
            correct=self.correct[rows],
            request_key=self.request_key[rows],
            request_ids=request_ids,
            metrics={name: column[rows] for name, column in self.metrics.items()},
        )


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A message that is not a record: where it is and why. `sample` never holds prompts or outputs."""

    partition: Partition
    offset: int
    reason: str  # one of REJECT_REASONS
    sample: str  # at most 200 characters, printable; "" for a tombstone


REJECT_REASONS: tuple[str, ...] = (
    "not_json",
    "invalid_utf8",
    "not_an_object",
    "missing_field",
    "wrong_type",
    "not_finite",
    "out_of_range",
    "timestamp_invalid",
    "timestamp_out_of_range",
    "timestamp_in_future",
    "too_large",
    "too_deep",
    "tombstone",
    "corrupt_batch",
    "compression_bomb",
    "refused_by_database",
)


class Decoder:
    """Messages of one format -> columns and rejected records. Never raises for what a message holds.

    It remembers, per partition, which user metrics it has seen, to keep at most `max_metrics`; values of
    further names are dropped and counted in `ignored_metrics`.
    """

    def __init__(self, record: RecordSettings, source: SourceSettings, window: WindowSettings) -> None:
        self.max_metrics = record.max_metrics
        self.max_record_bytes = source.max_record_bytes
        self.max_future_skew_ms = round(window.max_future_skew_s * 1000)
        self.ignored_metrics = 0
        self._metric_names: dict[Partition, dict[str, None]] = {}

    def decode(self, batch: RawBatch, *, now_ms: int) -> tuple[RecordColumns, list[RejectedRecord]]:
        """Accepted and rejected records, each in offset order; together they are the whole batch."""
        records: list[native.Record] = []
        refused: dict[int, str] = {}  # position in the batch -> reason, "" = to be found out
        parse, buffer, max_bytes = native.parse, memoryview(batch.buffer), self.max_record_bytes
        maybe_nul = b"\\u0000" in bytes(batch.buffer) if len(batch) else False
        rows: list[int] = []
        for row, (start, end) in enumerate(zip(batch.starts.tolist(), batch.ends.tolist(), strict=True)):
            if start < 0:
                refused[row] = "tombstone"
            elif end - start > max_bytes:
                refused[row] = "too_large"
            elif (record := parse(buffer[start:end])) is None or (maybe_nul and native.has_nul(record)):
                refused[row] = ""
            else:
                rows.append(row)
                records.append(record)
        timestamp_ms = _timestamps_ms([record.timestamp for record in records])
        low, high = (1000 * s for s in native.EPOCH_SPAN_S)
        outside = (timestamp_ms < low) | (timestamp_ms >= high)
        future = ~outside & (timestamp_ms > now_ms + self.max_future_skew_ms)
        keep = ~(outside | future)
        for i in np.flatnonzero(~keep).tolist():
            refused[rows[i]] = "timestamp_out_of_range" if outside[i] else "timestamp_in_future"
        if not keep.all():
            kept = np.flatnonzero(keep).tolist()
            records, rows = [records[i] for i in kept], [rows[i] for i in kept]
            timestamp_ms = timestamp_ms[keep]
        offsets_kept = batch.offsets[np.asarray(rows, np.int64)]
        columns = self._columns(batch.partition, offsets_kept, timestamp_ms, records)
        return columns, [_rejected(batch, row, refused[row]) for row in sorted(refused)]

    def forget(self, partition: Partition) -> None:
        """The partition is no longer ours."""
        self._metric_names.pop(partition, None)

    def _columns(
        self, partition: Partition, offsets: Int64, timestamp_ms: Int64, records: list[native.Record]
    ) -> RecordColumns:
        rows = [_astuple(record) for record in records]
        fields = zip(*rows, strict=True) if rows else [()] * len(native.FIELDS)
        by_name: dict[str, Sequence[Any]] = dict(zip(native.FIELDS, fields, strict=True))
        text = {name: _text_column(by_name[name]) for name in TEXT_FIELDS}
        numbers = {name: np.array(by_name[name], np.float64) for name in NUMBER_FIELDS}
        status = np.array([_STATUS.get(s, s) for s in by_name["status"]], np.int32)
        is_error = (status >= 400) | ((status == 0) & (text["error_type"].codes >= 0))
        correct = [
            -1 if label is None else int(label == prediction)
            for label, prediction in zip(by_name["label"], by_name["prediction"], strict=True)
        ]
        request_ids = [value or None for value in by_name["request_id"]]
        return RecordColumns(
            partition=partition,
            offsets=offsets,
            timestamp_ms=timestamp_ms,
            text=text,
            numbers=numbers,
            status=status,
            is_error=is_error.astype(np.int8),
            correct=np.array(correct, np.int8),
            request_key=np.array([request_key(value) for value in request_ids], np.uint64),
            request_ids=request_ids,
            metrics=self._metrics(partition, by_name["metrics"]),
        )

    def _metrics(
        self, partition: Partition, found: Sequence[dict[str, float | None] | None]
    ) -> dict[str, Float64]:
        known = self._metric_names.setdefault(partition, {})
        columns: dict[str, Float64] = {}
        for row, metrics in enumerate(found):
            for name, value in (metrics or {}).items():
                if name not in known:
                    if len(known) >= self.max_metrics:
                        self.ignored_metrics += 1
                        continue
                    known[name] = None
                if name not in columns:
                    columns[name] = np.full(len(found), np.nan)
                if value is not None:
                    columns[name][row] = value
        return columns


def request_key(request_id: str | None) -> int:
    """64-bit hash of a request_id, the same in every process; 0 = no request_id.

    CRC-32 and CRC-32C side by side: two polynomials, so that the halves are independent.
    """
    if not request_id:
        return 0
    encoded = request_id.encode()
    return (zlib.crc32(encoded) << 32 | crc32c.crc32c(encoded)) or 1


_STATUS: dict[str | int | None, int] = {None: 0, "ok": 200, "error": 500}
_astuple = msgspec.structs.astuple


def _timestamps_ms(found: list[datetime | int | float]) -> Int64:
    """Milliseconds, rounded down; half a microsecond is added against the rounding of float64."""
    seconds = np.array([t.timestamp() if type(t) is datetime else t for t in found], np.float64)
    numeric = np.array([type(t) is not datetime for t in found], np.bool_)
    scale = np.select([~numeric | (seconds < 1e11), seconds < 1e14, seconds < 1e17], [1e3, 1.0, 1e-3], 1e-6)
    milliseconds: Int64 = np.floor(seconds * scale + 5e-4).astype(np.int64)
    return milliseconds


def _text_column(found: Sequence[str | None]) -> TextColumn:
    values = [value for value in dict.fromkeys(found) if value]
    codes: dict[str | None, int] = {value: code for code, value in enumerate(values)}
    codes[None] = codes[""] = -1
    return TextColumn(np.fromiter(map(codes.__getitem__, found), np.int32, len(found)), values)


def _rejected(batch: RawBatch, row: int, reason: str) -> RejectedRecord:
    offset = int(batch.offsets[row])
    if reason == "tombstone":
        return RejectedRecord(batch.partition, offset, reason, "")
    start, end = int(batch.starts[row]), int(batch.ends[row])
    value = bytes(batch.buffer[start : min(end, start + 4096)] if reason else batch.buffer[start:end])
    return RejectedRecord(batch.partition, offset, reason or native.refusal(value), native.sample(value))
