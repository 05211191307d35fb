"""Open windows: records in, aggregates out. Importing this module loads numba: do it lazily."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.paired import Records
from monitor import grouping, kernels
from monitor.columns import Batch
from monitor.record_types import RequestIds
from monitor.series import FOREVER_MS, NEVER_MS
from monitor.sketches import (
    EXEMPLARS,
    GRID_CELLS,
    HISTOGRAMS,
    NUMBERS,
    SLICE_FIELDS,
    SLICE_SLOTS,
    SUMS,
    Aggregate,
    Histograms,
    Slices,
    bucket_values,
)
from monitor.tables import Table

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


def _grown(array: npt.NDArray[np.generic], size: int, fill: float = 0) -> npt.NDArray[np.generic]:
    """A copy with room for `size` entries along the first axis."""
    shape = (size, *array.shape[1:])
    bigger = np.zeros(shape, array.dtype) if fill == 0 else np.full(shape, fill, array.dtype)
    bigger[: len(array)] = array
    return bigger


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _empty_table(rows: int, entries: int) -> Table:
    fields = len(SLICE_FIELDS)
    return Table(
        sums=np.zeros((rows, len(SUMS))),
        minima=np.full((rows, HISTOGRAMS), np.inf),
        maxima=np.full((rows, HISTOGRAMS + 1), -np.inf),
        grid=np.zeros((rows, GRID_CELLS), np.uint8),
        first_ms=np.full(rows, FOREVER_MS, np.int64),
        last_ms=np.full(rows, NEVER_MS, np.int64),
        slice_ids=np.zeros((rows, fields, SLICE_SLOTS), np.int32),
        slice_counts=np.zeros((rows, fields, SLICE_SLOTS, 3), np.int64),
        slice_latency=np.zeros((rows, fields, SLICE_SLOTS)),
        slowest_ms=np.full((rows, EXEMPLARS), -1.0),
        exemplars=np.zeros((rows, 3, EXEMPLARS), np.int32),
        entry_row=np.zeros(entries, np.int32),
        entry_key=np.zeros(entries, np.uint64),
        entry_pair=np.zeros(entries, np.uint32),
        entry_codes=np.zeros((entries, HISTOGRAMS), np.uint16),
        seen_keys=np.zeros(4 * entries, np.int32),
        seen_pairs=np.zeros(4 * entries, np.int32),
    )


_VERSION, _CONFIDENCE = SLICE_FIELDS.index("model_version"), NUMBERS.index("confidence")


class _KeptIds:
    """The request_ids that a window names, by number; strings only of those that are asked for."""

    def __init__(self) -> None:
        self._chunks: list[Sequence[str | None]] = []
        self._firsts: list[int] = []
        self._size = 0

    def keep(self, ids: Sequence[str | None], chosen: Int64) -> Int64:
        """Remember some; returns their numbers."""
        kept = ids.kept(chosen) if isinstance(ids, RequestIds) else [ids[i] for i in chosen.tolist()]
        self._chunks.append(kept)
        self._firsts.append(self._size)
        self._size += len(chosen)
        return np.arange(self._firsts[-1], self._size)

    def __getitem__(self, number: int) -> str | None:
        chunk = bisect_right(self._firsts, number) - 1
        return self._chunks[chunk][number - self._firsts[chunk]]


@dataclass(frozen=True, slots=True)
class Exemplars:
    """Request_ids of m rows, by kind (slow, error, any), free places left out."""

    _ids: _KeptIds
    _numbers: Int64  # [m, 3, EXEMPLARS], -1 = a free place
    _slowest_ms: Float64  # [m, EXEMPLARS]

    def of(self, row: int) -> tuple[list[str], list[str], list[str]]:
        """The slow ones slowest first, the others in the order of the log."""
        slowest_first = np.argsort(-self._slowest_ms[row], kind="stable")
        slow, failed, others = self._numbers[row].tolist()
        return (
            self._texts([slow[i] for i in slowest_first.tolist()]),
            self._texts(failed),
            self._texts(others),
        )

    def _texts(self, numbers: list[int]) -> list[str]:
        found = [self._ids[number] for number in numbers if number >= 0]
        return [each for each in found if each is not None]


class _Marks(NamedTuple):
    """What is kept of every record of an open window (by entry), to tell versions apart."""

    versions: Int32  # text id, -1 = absent
    flags: npt.NDArray[np.int8]  # [entries, 3]: is_error, truncated, correct; -1 = absent
    confidence: npt.NDArray[np.float32]


def _no_marks(entries: int) -> _Marks:
    return _Marks(
        np.full(entries, -1, np.int32),
        np.full((entries, 3), -1, np.int8),
        np.full(entries, np.nan, np.float32),
    )


_ROW_FILL = {
    "minima": np.inf,
    "maxima": -np.inf,
    "first_ms": FOREVER_MS,
    "last_ms": NEVER_MS,
    "slowest_ms": -1.0,
}
_ENTRY_FIELDS = ("entry_row", "entry_key", "entry_pair", "entry_codes")
_HASH_FIELDS = ("seen_keys", "seen_pairs")


class OpenWindow:
    """One window of all series of a partition, while records may still come."""

    def __init__(
        self,
        start_ms: int,
        window_ms: int,
        max_metrics: int,
        metric_names: Sequence[str] = (),
        *,
        series: int = 0,
        records: int = 0,
    ) -> None:
        """metric_names: user metrics admitted beforehand; others as they come, up to `max_metrics`.

        `series` and `records`: how many are expected, so that the table need not grow often.
        """
        self.start_ms = start_ms
        self.first_offset = FOREVER_MS
        self.sids: list[int] = []  # by row
        self.metric_names = list(metric_names)
        self._cell_ms = window_ms / GRID_CELLS
        self._max_metrics = max_metrics
        self._row_of = np.full(64, -1, np.int32)
        self._rows, self._entries = max(series, 16), max(512, _power_of_two(records))  # capacities
        self._sid_of_row = np.zeros(self._rows, np.int64)
        self._used = 0
        self._table = _empty_table(self._rows, self._entries)
        self._ids = _KeptIds()
        self._exemplars = np.full((self._rows, 3, EXEMPLARS), -1, np.int64)  # numbers of _ids
        self._metric_sums = np.zeros((self._rows, max_metrics))
        self._metric_counts = np.zeros((self._rows, max_metrics))
        self._marks: _Marks | None = None  # of the entries, from the first record with a version on
        self._order: tuple[Int64, Int64] | None = None  # of the entries, once closed

    def add(self, batch: Batch, chosen: Int64) -> tuple[int, int]:
        """Count records of this window, in offset order -> (records accepted, metric values ignored)."""
        self._make_rows(batch.columns.sid[chosen])
        self._make_room(self._used + len(chosen))
        self.first_offset = min(self.first_offset, int(batch.offsets[chosen[0]]))
        kept, rows, exemplars = kernels.count(
            *(self._table, batch.columns, batch.bits, chosen, self._row_of, self._used),
            *(self.start_ms, self._cell_ms, len(self.sids)),
        )
        if self._marks is not None or (batch.columns.texts[_VERSION, kept] >= 0).any():
            self._mark(batch, kept)
        self._used += len(kept)
        if len(exemplars):
            row, kind, at, record = exemplars.T
            self._exemplars[row, kind, at] = self._ids.keep(batch.request_ids, record)
        ignored = self._add_metrics(batch, kept, rows) if batch.metric_names else 0
        return len(kept), ignored

    def times(self) -> tuple[Int64, Int64, Int64]:
        """(sid, first event time, last event time) of every row."""
        rows = len(self.sids)
        return self._sid_of_row[:rows], self._table.first_ms[:rows], self._table.last_ms[:rows]

    def used_texts(self) -> Int32:
        """Ids of the texts that this window refers to, unsorted, with repetitions."""
        held = self._table.slice_ids[: len(self.sids)]
        return np.asarray(held[held > 0] - 1)

    def move_texts(self, moved: Int32) -> None:
        """moved: old id -> new id."""
        held = self._table.slice_ids
        held[held > 0] = moved[held[held > 0] - 1] + 1
        if self._marks is not None:
            versions = self._marks.versions
            versions[versions >= 0] = moved[versions[versions >= 0]]

    def close(self, rank: Int64, texts: Sequence[str]) -> Aggregate:
        """The aggregate, row r at place rank[r]."""
        rows = len(self.sids)
        order, bounds = self._order = grouping.order_by_row(self._table.entry_row, self._used, rank)
        by_rank = np.empty(rows, np.int64)
        by_rank[rank] = np.arange(rows)
        t = self._table
        histograms = Histograms(*grouping.sparse_histograms(t.entry_codes, order, bounds))
        keys, pairs = t.entry_key[order], t.entry_pair[order]
        names = len(self.metric_names)
        return Aggregate(
            *(t.sums[by_rank], t.minima[by_rank], t.maxima[by_rank], t.grid[by_rank], histograms),
            *(_bounds_of_nonzero(keys, bounds), keys[keys != 0]),
            *(_bounds_of_nonzero(pairs, bounds), pairs[pairs != 0]),
            self._slices(by_rank, texts),
            metric_names=self.metric_names,
            metric_sums=self._metric_sums[by_rank, :names],
            metric_counts=self._metric_counts[by_rank, :names],
        )

    def by_version(self, place: int, texts: Sequence[str]) -> dict[str, Records]:
        """The records of the row at this place of a closed window, by model version."""
        if self._marks is None or self._order is None:
            return {}
        order, bounds = self._order
        entries = order[bounds[place] : bounds[place + 1]]
        versions = self._marks.versions[entries]
        found = {}
        for version in np.unique(versions[versions >= 0]).tolist():
            own = entries[versions == version]
            codes = self._table.entry_codes[own]
            numbers = np.where(codes == 0, np.nan, bucket_values()[codes])
            flags = self._marks.flags[own]
            found[texts[version]] = Records(
                latency_ms=numbers[:, 0],
                ttft_ms=numbers[:, 1],
                input_tokens=numbers[:, 4],
                output_tokens=numbers[:, 5],
                confidence=self._marks.confidence[own].astype(np.float64),
                is_error=flags[:, 0],
                truncated=flags[:, 1],
                correct=flags[:, 2],
            )
        return found

    @property
    def records(self) -> int:
        """How many count."""
        return self._used

    def exemplars(self, rank: Int64) -> Exemplars:
        """Of every row, placed by rank."""
        by_rank = np.argsort(rank)
        return Exemplars(self._ids, self._exemplars[by_rank], self._table.slowest_ms[by_rank])

    def _slices(self, by_rank: Int64, texts: Sequence[str]) -> Slices:
        t = self._table
        ids = t.slice_ids[by_rank]
        row, fields, slots = np.nonzero(ids)
        held = (by_rank[row], fields, slots)
        bounds = np.searchsorted(row, np.arange(len(by_rank) + 1))
        return Slices(
            *(bounds, fields.astype(np.uint8), t.slice_ids[held] - 1, t.slice_counts[held]),
            *(t.slice_latency[held], texts),
        )

    def _mark(self, batch: Batch, kept: Int64) -> None:
        """Remember what tells the records of two versions apart, beside their buckets."""
        if self._marks is None:
            self._marks = _no_marks(self._entries)
        elif len(self._marks.versions) < self._entries:
            bigger = _no_marks(self._entries)
            for name in _Marks._fields:
                getattr(bigger, name)[: self._used] = getattr(self._marks, name)[: self._used]
            self._marks = bigger
        kernels.mark(batch.columns, _VERSION, _CONFIDENCE, kept, self._used, *self._marks)

    def _make_rows(self, sid: Int32) -> None:
        highest = int(sid.max())
        if highest >= len(self._row_of):
            bigger = np.full(2 * highest + 1, -1, np.int32)
            bigger[: len(self._row_of)] = self._row_of
            self._row_of = bigger
        unknown = sid[self._row_of[sid] < 0]
        if not len(unknown):
            return
        known, new = len(self.sids), np.unique(unknown)
        self._row_of[new] = np.arange(known, known + len(new))
        self.sids.extend(new.tolist())
        self._grow(len(self.sids))
        self._sid_of_row[known : known + len(new)] = new

    def _grow(self, rows: int) -> None:
        if rows <= self._rows:
            return
        self._rows = 2 * rows
        grown: dict[str, Any] = {
            name: _grown(array, self._rows, _ROW_FILL.get(name, 0))
            for name, array in self._table._asdict().items()
            if name not in (*_ENTRY_FIELDS, *_HASH_FIELDS)
        }
        self._table = self._table._replace(**grown)
        self._exemplars = np.asarray(_grown(self._exemplars, self._rows, -1), np.int64)
        self._metric_sums = np.asarray(_grown(self._metric_sums, self._rows), np.float64)
        self._metric_counts = np.asarray(_grown(self._metric_counts, self._rows), np.float64)
        self._sid_of_row = np.asarray(_grown(self._sid_of_row, self._rows), np.int64)

    def _make_room(self, entries: int) -> None:
        if entries <= self._entries:
            return
        self._entries = _power_of_two(entries)
        grown: dict[str, Any] = {
            name: _grown(getattr(self._table, name), self._entries) for name in _ENTRY_FIELDS
        }
        hashes: dict[str, Any] = {name: np.zeros(4 * self._entries, np.int32) for name in _HASH_FIELDS}
        self._table = self._table._replace(**grown, **hashes)
        kernels.rehash(self._table, self._used)

    def _add_metrics(self, batch: Batch, kept: Int64, rows: Int64) -> int:
        new: list[tuple[int, str, int]] = []
        slots = np.full(len(batch.metric_names), -1, np.int64)
        for m, name in enumerate(batch.metric_names):
            if name in self.metric_names:
                slots[m] = self.metric_names.index(name)
            else:
                there = np.flatnonzero(~np.isnan(batch.metrics[m, kept]))
                if len(there):
                    new.append((int(there[0]), name, m))
        for _, name, m in sorted(new):
            if len(self.metric_names) < self._max_metrics:
                slots[m] = len(self.metric_names)
                self.metric_names.append(name)
        return kernels.add_metrics(batch.metrics, slots, kept, rows, self._metric_sums, self._metric_counts)


def _bounds_of_nonzero(values: npt.NDArray[np.unsignedinteger], bounds: Int64) -> Int64:
    """Bounds of the rows once the zeros are gone."""
    kept = np.concatenate([[0], np.cumsum(values != 0)])
    return np.asarray(kept[bounds], np.int64)
