"""Event-time windows of one partition: tumbling, aligned to the epoch, closed by the watermark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import structlog

from monitor import closing, metrics, sketch_reader
from monitor.admission import IDLE_WINDOWS, Admission, ParkedLoader, overflow_name
from monitor.config import WindowSettings
from monitor.records import RecordColumns
from monitor.series import NEVER_MS, SeriesInfo, SeriesTable
from monitor.sources.base import Partition
from monitor.steps import (
    Added,
    AmendedWindow,
    CapReached,
    ClosedWindows,
    ExpiredSeries,
    ParkedSeries,
    ReturnedSeries,
    SketchLoader,
    Slice,
    Step,
)

if TYPE_CHECKING:  # these load numba, which is slow and only needed where windows are built
    from monitor.aggregate import OpenWindow
    from monitor.columns import Batch

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

__all__ = [
    "Added",
    "AmendedWindow",
    "CapReached",
    "ClosedWindows",
    "ExpiredSeries",
    "ParkedSeries",
    "PartitionWindows",
    "ReturnedSeries",
    "SeriesInfo",
    "SketchLoader",
    "Slice",
    "Step",
]

TEXTS_KEPT = 65_536  # slice values held in memory before those of closed windows are forgotten


@dataclass(slots=True)
class _Counts:
    """What the call under way has done so far."""

    steps: list[Step]
    accepted: int = 0
    late: int = 0
    duplicates: int = 0

    def added(self, refused: int = 0) -> Added:
        gone = (info.series for step in self.steps if isinstance(step, ExpiredSeries) for info in step.infos)
        return Added(self.steps, self.accepted, self.late, self.duplicates, refused, tuple(gone))


class PartitionWindows:
    """The windows of one partition. The same log gives the same steps, however it is cut or restarted.

    The frontier is the start of the oldest window that is not closed. It follows from the watermark
    alone, so that lateness, closing and the revision horizon need no other memory.
    """

    def __init__(
        self,
        settings: WindowSettings,
        series_by: Sequence[str],
        partition: Partition,
        *,
        watermark_ms: int | None,
        next_offset: int | None,
        close_offset: int | None,
        known: Iterable[SeriesInfo] = (),
        load_sketch: SketchLoader,
        load_parked: ParkedLoader = lambda _: [],
        max_metrics: int = 16,
        series_suffix: str = "",
    ) -> None:
        """The first four keywords are what the last commit stored, None/empty for a new partition.
        `series_suffix` ends the names of series that are not known yet.

        Raises ValueError when a state in `known` was not written by this version.
        """
        from monitor import aggregate, columns

        self._new_window, self._prepare = aggregate.OpenWindow, columns.prepare
        self.partition = partition
        self.window_ms = settings.length_s * 1000
        self._lateness_ms = round(settings.allowed_lateness_s * 1000)
        self._horizon_ms = round(settings.revision_horizon_s * 1000)
        self._empty_for_ms = round(settings.empty_for_s * 1000)
        self._max_metrics = max_metrics
        self._load_sketch = load_sketch
        self._watermark_ms = NEVER_MS if watermark_ms is None else watermark_ms
        self._rebuild_below = -1 if next_offset is None else next_offset
        self._next_offset = 0 if next_offset is None else next_offset
        self.close_offset = self._next_offset if close_offset is None else close_offset
        self._series = SeriesTable(series_by, known, series_suffix, overflow_name(partition)[0])
        self._admission = Admission(
            *(self._series, partition, settings.max_series),
            *(IDLE_WINDOWS * self.window_ms, self._empty_for_ms, load_parked),
        )
        if next_offset is None or not self._admission.overflowing:
            self._series.forget_since()
        self._texts = columns.Texts()
        self._open: dict[int, OpenWindow] = {}
        self._usual_records = 0  # of the newest closed window
        self._pending: list[Batch] = []
        self._fresh: dict[tuple[str, int], bytes] = {}  # sketches that this call's steps amended
        self._fresh_closed: dict[int, ClosedWindows] = {}  # by start: what this call has closed
        self._empties: tuple[Int64, ClosedWindows] | None = None  # newest empty windows of a silence
        self.ignored_metrics = 0  # values of user metrics beyond `max_metrics` names in a window
        self.finished = False  # by `finish`, until more records come

    @property
    def watermark_ms(self) -> int | None:
        """Highest event time so far; None before the first record."""
        return None if self._watermark_ms == NEVER_MS else self._watermark_ms

    @property
    def live_series(self) -> int:
        return len(self._series.live())

    def infos(self) -> list[SeriesInfo]:
        """All live series, ascending by name."""
        return self._series.infos(self._series.live())

    def unsaved(self) -> list[SeriesInfo]:
        """While the overflow series is live: series that got a place since `saved` was called.

        They belong into the next commit, for a restart tells by them which records they got.
        """
        if not self._admission.overflowing:
            return []
        return self._series.infos(np.array(sorted(self._series.unsaved), np.int64))

    def saved(self) -> None:
        self._series.unsaved.clear()

    def restart_offset(self, next_offset: int) -> int:
        """Lowest offset of a record in an open window or a pending amendment, else `next_offset`."""
        firsts = [window.first_offset for window in self._open.values()]
        firsts += [int(batch.offsets[0]) for batch in self._pending]
        return min(firsts, default=next_offset)

    def add(self, records: RecordColumns) -> Added:
        """Count records, in offset order, over all calls. Those below next_offset only rebuild."""
        counts = _Counts([])
        if not len(records):
            return counts.added()
        self._begin()
        self.finished = False
        batch = self._prepare(records, self._series.resolve(records), self._texts)
        start = self._floor(records.timestamp_ms)
        old = int(np.searchsorted(records.offsets, self._rebuild_below))
        if old:
            self._rebuild(batch, start, old)
        if old < len(records):
            self._next_offset = max(self._next_offset, int(records.offsets[-1]) + 1)
            self._add_new(batch, start, old, counts)
        self._tidy()
        return counts.added(self._admission.refused)

    def advance(self, watermark_ms: int) -> Added:
        """Let event time pass without records: an idle partition. Earlier times change nothing."""
        self._begin()
        counts = _Counts([])
        self._pass_time(max(watermark_ms, self._watermark_ms), self._next_offset, counts)
        self._tidy()
        return counts.added()

    def finish(self) -> Added:
        """End of a bounded log: apply what is pending and close every open window."""
        self._begin()
        counts = _Counts([])
        self._apply_pending(self._next_offset, self._frontier(self._watermark_ms), counts)
        if self._open:
            last_end_ms = max(self._open) + self.window_ms
            self._pass_time(
                max(self._watermark_ms, last_end_ms + self._lateness_ms), self._next_offset, counts
            )
        self._tidy()
        self.finished = True
        return counts.added()

    def _begin(self) -> None:
        self._fresh.clear()
        self._fresh_closed.clear()
        self._admission.begin()

    def _floor(self, at_ms: Int64) -> Int64:
        return np.asarray(at_ms // self.window_ms * self.window_ms, np.int64)

    def _frontier(self, watermark_ms: int) -> int:
        return (watermark_ms - self._lateness_ms) // self.window_ms * self.window_ms

    def _add_new(self, batch: Batch, start: Int64, old: int, counts: _Counts) -> None:
        """Cut the records where the frontier moves; between the cuts nothing closes."""
        seen = np.concatenate([[self._watermark_ms], batch.columns.timestamp_ms[old:]])
        marks = np.maximum.accumulate(seen)
        frontiers = self._floor(marks - self._lateness_ms)
        begin = old
        for cut in (np.flatnonzero(frontiers[1:] > frontiers[:-1]) + old).tolist():
            self._count(batch, start, begin, cut, counts)
            self._pass_time(int(marks[cut - old + 1]), int(batch.offsets[cut]), counts)
            begin = cut
        self._count(batch, start, begin, len(start), counts)
        self._watermark_ms = int(marks[-1])

    def _count(self, batch: Batch, start: Int64, begin: int, end: int, counts: _Counts) -> None:
        """Records [begin, end): into open windows, or pending, or counted as late and no more."""
        if begin == end:
            return
        frontier = self._frontier(self._watermark_ms)
        part = start[begin:end]
        is_late = part < frontier
        amends = is_late & self._amendable(part, frontier)
        counted = np.flatnonzero(~is_late | amends) + begin
        held = [waiting.columns.sid for waiting in self._pending]
        counts.steps += self._admission.admit(batch.columns.sid, batch.offsets, counted, frontier, held)
        late = np.flatnonzero(amends) + begin
        if len(late):
            self._pending.append(batch.take(late))
        counts.late += int(np.count_nonzero(is_late))
        on_time = np.flatnonzero(~is_late) + begin
        accepted = self._into_windows(batch, start, on_time)
        counts.accepted += accepted
        counts.duplicates += len(on_time) - accepted

    def _amendable(self, start: Int64, frontier: int) -> Bool:
        """Within the horizon, counted from the watermark that moved the frontier to where it is."""
        return np.asarray(start + self.window_ms + self._horizon_ms > frontier + self._lateness_ms)

    def _into_windows(self, batch: Batch, start: Int64, chosen: Int64) -> int:
        accepted = 0
        own_start = start[chosen]
        for at in np.unique(own_start).tolist():
            window = self._open.get(at)
            if window is None:
                window = self._new_window(
                    at,
                    self.window_ms,
                    self._max_metrics,
                    series=self.live_series,
                    records=self._usual_records,
                )
                self._open[at] = window
            counted, ignored = window.add(batch, chosen[own_start == at])
            accepted += counted
            self.ignored_metrics += ignored
            self._series.seen(*window.times())
        return accepted

    def _rebuild(self, batch: Batch, start: Int64, old: int) -> None:
        """Records of before the restart: back into the windows that are open, or to be amended."""
        frontier = self._frontier(self._watermark_ms)
        part = start[:old]
        is_open = part >= frontier
        waiting = ~is_open & (batch.offsets[:old] >= self.close_offset) & self._amendable(part, frontier)
        again = np.flatnonzero(is_open | waiting)
        sids = batch.columns.sid[again]
        self._admission.admit_again(sids, batch.offsets[again])
        batch.columns.sid[again] = sids
        self._into_windows(batch, start, np.flatnonzero(is_open))
        if waiting.any():
            self._pending.append(batch.take(np.flatnonzero(waiting)))

    def _pass_time(self, watermark_ms: int, offset: int, counts: _Counts) -> None:
        """Move the watermark; where the frontier moves with it, amend and close."""
        at, end = self._frontier(self._watermark_ms), self._frontier(watermark_ms)
        self._watermark_ms = watermark_ms
        if at == end:
            return
        self._apply_pending(offset, at, counts)
        self._empties = None
        while at < end:
            live = self._series.live()
            first = self._floor(self._series.first_ms[live])
            members = live[first <= at]
            if len(members):
                self._close(at, members, counts)
                at += self.window_ms
            elif len(live):
                at = int(first.min())
            else:
                break

    def _close(self, at: int, members: Int64, counts: _Counts) -> None:
        window = self._open.pop(at, None)
        if window is not None:
            self._usual_records = window.records
            step = closing.filled(window, self.window_ms, self._series, members, self._texts.values)
            self._fresh_closed[at] = step
        else:
            if self._empties is None or not np.array_equal(self._empties[0], members):
                self._empties = members, closing.empty(at, self.window_ms, self._series, members)
            step = closing.again(self._empties[1], at)
        counts.steps.append(step)
        end_ms = at + self.window_ms
        silent_ms = end_ms - self._series.last_ms[members]
        gone = members[silent_ms > self._empty_for_ms]
        if len(gone):
            counts.steps.append(ExpiredSeries(end_ms, self._series.infos(gone)))
            self._series.expire(gone)

    def _apply_pending(self, offset: int, frontier: int, counts: _Counts) -> None:
        """Late records of before `offset` change their windows, one step per (window, series)."""
        self.close_offset = offset
        groups: dict[tuple[int, str], list[tuple[Batch, Int64]]] = {}
        for batch in self._pending:
            start = self._floor(batch.columns.timestamp_ms)
            both = np.stack([start, batch.columns.sid])
            found, group = np.unique(both, axis=1, return_inverse=True)
            for g, (at, sid) in enumerate(found.T.tolist()):
                chosen = np.flatnonzero(group.reshape(-1) == g)
                groups.setdefault((at, self._series.names[sid]), []).append((batch, chosen))
        self._pending = []
        for (at, name), parts in sorted(groups.items(), key=lambda each: each[0]):
            step = self._amend(at, name, parts, frontier + self.window_ms)
            if step is not None:
                counts.steps.append(step)
        self._series.dismiss(self._series.without_records())

    def _amend(
        self, at: int, name: str, parts: list[tuple[Batch, Int64]], at_ms: int
    ) -> AmendedWindow | None:
        """None if all the records had been counted before, or if the window cannot be changed any more.

        at_ms: event time of the change.
        """
        blob = self._sketch(name, at)
        try:
            stored = None if blob is None else sketch_reader.decode(blob)
        except ValueError as error:  # damaged: the window stays as it is, and the records are told as late
            log.error("sketch_lost", series=name, window_start_ms=at, error=str(error)[:300])
            metrics.MEMORY_LOST.labels("sketch").inc()
            return None
        admitted = [] if stored is None else stored[0].metric_names
        window = self._new_window(at, self.window_ms, self._max_metrics, admitted)
        for batch, chosen in parts:
            key = batch.columns.key[chosen]
            counted = np.zeros(len(chosen), np.bool_) if stored is None else np.isin(key, stored[0].keys)
            fresh = chosen[~counted | (key == 0)]
            if len(fresh):
                self.ignored_metrics += window.add(batch, fresh)[1]
        if not window.sids:
            return None
        step = closing.amended(window, self.window_ms, self._series, self._texts.values, stored, at_ms)
        self._fresh[name, at] = step.sketch
        return step

    def _sketch(self, name: str, at: int) -> bytes | None:
        """Of a closed window: of this call's steps, else stored."""
        found, closed = self._fresh.get((name, at)), self._fresh_closed.get(at)
        if found is None and closed is not None and name in closed.batch.series:
            found = closed.sketches[closed.batch.series.index(name)]
        return self._load_sketch(name, at) if found is None else found

    def _tidy(self) -> None:
        """Forget series and texts that nothing refers to."""
        self._series.forget_all_but([batch.columns.sid for batch in self._pending])
        if len(self._texts) > TEXTS_KEPT and not self._pending:
            used = [window.used_texts() for window in self._open.values()]
            kept = np.unique(np.concatenate(used)).tolist() if used else []
            moved = self._texts.keep(kept)
            for window in self._open.values():
                window.move_texts(moved)
