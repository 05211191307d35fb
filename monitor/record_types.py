"""The columns in which records travel behind the decoder: one array per field, one entry per record.

Strings are codes into a small table. Nothing downstream holds an object per record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from monitor.sources.base import Partition

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


class RequestIds(Sequence[str | None]):
    """The request_ids of n records, made into strings only when asked for.

    Record i has buffer[starts[i]:ends[i]], or others[-1 - starts[i]] where starts[i] is negative.
    """

    __slots__ = ("_buffer", "_ends", "_others", "_starts")

    def __init__(
        self, buffer: bytes | memoryview, starts: Int64, ends: Int64, others: list[str | None]
    ) -> None:
        self._buffer, self._starts, self._ends, self._others = buffer, starts, ends, others

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, i: int) -> str | None: ...
    @overload
    def __getitem__(self, i: slice) -> RequestIds: ...
    def __getitem__(self, i: int | slice) -> str | RequestIds | None:
        if isinstance(i, slice):
            return self.take(i)
        start = int(self._starts[i])
        if start < 0:
            return self._others[-1 - start]
        return bytes(self._buffer[start : int(self._ends[i])]).decode() or None

    def kept(self, rows: Int64) -> RequestIds:
        """Those of some records, in bytes of their own: they do not hold on to the buffer."""
        from monitor.sources.cutting import gathered

        starts, ends = self._starts[rows], self._ends[rows]
        elsewhere = starts < 0
        own = gathered(np.frombuffer(self._buffer, np.uint8), starts, ends)
        behind = np.cumsum(np.where(elsewhere, 0, ends - starts))
        begin = np.concatenate([[0], behind])[:-1]
        begin[elsewhere] = -1 - np.arange(np.count_nonzero(elsewhere))
        others = [self._others[-1 - start] for start in starts[elsewhere].tolist()]
        return RequestIds(own.tobytes(), begin, behind, others)

    def take(self, rows: slice | npt.NDArray[Any]) -> RequestIds:
        return RequestIds(self._buffer, self._starts[rows], self._ends[rows], self._others)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


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
    request_ids: Sequence[str | None]  # [n], kept only to name exemplars
    metrics: dict[str, Float64] = field(default_factory=dict)  # user metrics, [n], NaN = absent

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, rows: slice | npt.NDArray[Any]) -> RecordColumns:
        """Some of the records: a slice, a boolean mask [n] or ascending row numbers. Tables are shared."""
        request_ids: Sequence[str | None]
        if isinstance(self.request_ids, RequestIds):
            request_ids = self.request_ids.take(rows)
        elif isinstance(rows, slice):
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
