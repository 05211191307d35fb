"""Rows that msgspec has read -> the columns that the scanner fills for the others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import crc32c
import msgspec
import numpy as np
import numpy.typing as npt

from monitor.formats import native
from monitor.formats.scan import Scan
from monitor.record_types import NUMBER_FIELDS, TEXT_FIELDS

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

_STATUS: dict[str | int | None, int] = {None: 0, "ok": 200, "error": 500}
_astuple = msgspec.structs.astuple


class Dictionaries:
    """The strings behind the codes of a scan; rows that msgspec has read may add to them."""

    def __init__(self, buffer: bytes | memoryview, out: Scan) -> None:
        def strings(which: int) -> list[str]:
            size = int(out.sizes[which])
            spans = zip(
                out.value_start[which, :size].tolist(), out.value_end[which, :size].tolist(), strict=True
            )
            return [str(buffer[a:b], "ascii") for a, b in spans]

        self.values = [strings(which) for which in range(len(TEXT_FIELDS))]
        self.names = strings(len(TEXT_FIELDS))  # of user metrics
        self.request_ids: list[str | None] = []
        entries = int(out.entries[0])
        self._metrics = (out.metric_row[:entries], out.metric_name[:entries], out.metric_value[:entries])

    def encode(self, which: int, found: Sequence[str | None]) -> Int32:
        """Codes of the values of a text field, -1 for None and the empty string."""
        values = self.values[which]
        codes = {value: code for code, value in enumerate(values)}
        for value in found:
            if value and value not in codes:
                codes[value] = len(values)
                values.append(value)
        return np.array([codes[value] if value else -1 for value in found], np.int32)

    def add_metrics(self, rows: Sequence[int], found: Sequence[dict[str, float | None] | None]) -> None:
        codes = {name: code for code, name in enumerate(self.names)}
        entries: list[tuple[int, int, float]] = []
        for row, metrics in zip(rows, found, strict=True):
            for name, value in (metrics or {}).items():
                code = codes.setdefault(name, len(codes))
                entries.append((row, code, np.nan if value is None else value))
        self.names = list(codes)
        if entries:
            more = zip(*entries, strict=True)
            old: tuple[npt.NDArray[Any], ...] = self._metrics
            joined = [np.concatenate([a, np.array(b, a.dtype)]) for a, b in zip(old, more, strict=True)]
            order = np.argsort(joined[0], kind="stable")
            self._metrics = (joined[0][order], joined[1][order], joined[2][order])

    def metrics(self) -> tuple[Int32, Int32, Float64]:
        """(row, code in `names`, value or NaN) of every user metric, by row."""
        return self._metrics


def fill(out: Scan, texts: Dictionaries, rows: list[int], records: list[native.Record]) -> None:
    """Write records into the columns of `out`, at `rows` (ascending)."""
    fields = zip(*map(_astuple, records), strict=True)
    by_name: dict[str, Sequence[Any]] = dict(zip(native.FIELDS, fields, strict=True))
    out.timestamp_ms[rows] = timestamps_ms(by_name["timestamp"])
    for which, name in enumerate(TEXT_FIELDS):
        out.codes[which, rows] = texts.encode(which, by_name[name])
    for place, name in enumerate(NUMBER_FIELDS):
        out.numbers[place, rows] = np.array(by_name[name], np.float64)
    out.status[rows] = [_STATUS.get(s, s) for s in by_name["status"]]
    out.correct[rows] = [
        -1 if label is None else int(label == prediction)
        for label, prediction in zip(by_name["label"], by_name["prediction"], strict=True)
    ]
    ids = by_name["request_id"]
    out.key[rows] = np.array([request_key(value) for value in ids], np.uint64)
    out.id_start[rows] = -1 - np.arange(len(rows))
    texts.request_ids = [value or None for value in ids]
    texts.add_metrics(rows, by_name["metrics"])


def request_key(request_id: str | None) -> int:
    """64-bit hash of a request_id, the same in every process; 0 = no request_id.

    CRC-32 and CRC-32C side by side: two polynomials, so that the halves are independent.
    """
    if not request_id:
        return 0
    encoded = request_id.encode()
    return (zlib.crc32(encoded) << 32 | crc32c.crc32c(encoded)) or 1


def timestamps_ms(found: Sequence[datetime | int | float]) -> Int64:
    """Milliseconds, rounded down; half a microsecond is added against the rounding of float64."""
    seconds = np.array([t.timestamp() if isinstance(t, datetime) else t for t in found], np.float64)
    numeric = np.array([not isinstance(t, datetime) for t in found], np.bool_)
    scale = np.select([~numeric | (seconds < 1e11), seconds < 1e14, seconds < 1e17], [1e3, 1.0, 1e-3], 1e-6)
    milliseconds: Int64 = np.floor(seconds * scale + 5e-4).astype(np.int64)
    return milliseconds
