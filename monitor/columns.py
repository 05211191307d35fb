"""Record columns as the window kernels want them. Importing this module loads numba: do it lazily."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from monitor.records import NUMBER_FIELDS, RecordColumns, TextColumn
from monitor.sketches import SLICE_FIELDS
from monitor.tables import Columns

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]


class Texts:
    """Strings of slices <-> small integers. Ids hold until `keep`."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._ids: dict[str, int] = {}
        self._hashes: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def id_of(self, text: str) -> int:
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = len(self.values)
            self.values.append(text)
            self._hashes.append(zlib.crc32(text.encode("utf-8", "surrogatepass")))
        return found

    def encode(self, column: TextColumn) -> Int32:
        """Codes of a column -> ids, -1 = absent; only values that occur get an id."""
        table = np.full(len(column.values) + 1, -1, np.int32)
        for code in _present(column.codes, len(column.values)):
            table[code] = self.id_of(column.values[code])
        return table[column.codes]

    def hashes(self, ids: Int32) -> UInt64:
        """Stable hash of each text, 0 for an absent one."""
        return np.array([*self._hashes, 0], np.uint64)[ids]

    def keep(self, used: Sequence[int]) -> Int32:
        """Forget every text but `used`; returns the table old id -> new id.

        `values` becomes a new list: who holds the old one can still read it.
        """
        moved = np.full(len(self.values), -1, np.int32)
        kept = [self.values[i] for i in used]
        self.values, self._ids, self._hashes = [], {}, []
        for old, text in zip(used, kept, strict=True):
            moved[old] = self.id_of(text)
        return moved


def _present(codes: Int32, size: int) -> list[int]:
    """Codes >= 0 that occur."""
    seen = np.zeros(size + 1, np.bool_)
    seen[codes] = True
    found: list[int] = np.flatnonzero(seen[:size]).tolist()
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Records of one partition as the kernels want them."""

    offsets: Int64  # [n]
    columns: Columns
    bits: Int64  # [10, n], columns.numbers as integers
    request_ids: Sequence[str | None]
    metric_names: list[str] = field(default_factory=list)
    metrics: Float64 = field(default_factory=lambda: np.zeros((0, 0)))  # [names, n]

    def take(self, chosen: Int64) -> Batch:
        """A copy of some records, without request_ids."""
        c = self.columns
        numbers = np.ascontiguousarray(c.numbers[:, chosen])
        columns = Columns(
            *(c.sid[chosen], c.timestamp_ms[chosen], numbers, c.status[chosen], c.is_error[chosen]),
            *(c.correct[chosen], c.truncated[chosen], c.key[chosen]),
            *(np.ascontiguousarray(c.texts[:, chosen]), c.tenant_hash[chosen]),
        )
        metrics = np.ascontiguousarray(self.metrics[:, chosen])
        return Batch(
            self.offsets[chosen],
            columns,
            numbers.view(np.int64),
            [None] * len(chosen),
            self.metric_names,
            metrics,
        )


def prepare(records: RecordColumns, sid: Int32, texts: Texts) -> Batch:
    """sid: [n], series of every record."""
    numbers = np.stack([records.numbers[name] for name in NUMBER_FIELDS])
    ids = np.stack([texts.encode(records.text[name]) for name in SLICE_FIELDS])
    finish = records.text["finish_reason"]
    truncated = np.array([value == "length" for value in finish.values] + [False], np.int8)[finish.codes]
    truncated[finish.codes < 0] = -1
    names = list(records.metrics)
    metrics = np.stack([records.metrics[name] for name in names]) if names else np.zeros((0, len(records)))
    columns = Columns(
        sid=sid,
        timestamp_ms=records.timestamp_ms,
        numbers=numbers,
        status=records.status,
        is_error=records.is_error,
        correct=records.correct,
        truncated=truncated,
        key=records.request_key,
        texts=ids,
        tenant_hash=texts.hashes(ids[SLICE_FIELDS.index("tenant")]),
    )
    return Batch(records.offsets, columns, numbers.view(np.int64), records.request_ids, names, metrics)
