"""One claimed partition: everything in memory that belongs to it, and the commit it is drafting.

All of it is thrown away when the claim is lost; all of it comes back from the claim of the next owner.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from detectors.base import Scorer, SeriesStates
from monitor.alerting import AlertState
from monitor.decoding import Decoded, Decoding
from monitor.recall import recall
from monitor.records import Decoder, RecordColumns
from monitor.rollouts import Rollouts
from monitor.sources.base import Assigned, Gap, Partition, Undecodable
from monitor.stalls import Silence
from monitor.windows import Added, PartitionWindows, SeriesInfo
from storage.types import (
    AlertRow,
    AlertTransition,
    Claim,
    Commit,
    ComparisonRow,
    DeploymentRow,
    RejectedRow,
    RevisedWindow,
    ScoredWindows,
    SeriesRow,
    StoredWindow,
)

MAX_STARTS = 60
"""Starts of windows between two looks at whether a commit is due: each takes some milliseconds, however few
the series, and behind an outage a single batch may hold thousands."""


@dataclass(frozen=True, slots=True)
class Far:
    row: int
    horizon_ms: int


@dataclass(slots=True)
class Draft:
    """What the next commit of a partition will hold. Counts are increments."""

    accepted: int = 0
    late: int = 0
    duplicates: int = 0
    windows: list[ScoredWindows] = field(default_factory=list)
    revisions: list[RevisedWindow] = field(default_factory=list)
    touched: dict[str, SeriesInfo] = field(default_factory=dict)
    expired: list[str] = field(default_factory=list)
    parked: dict[str, SeriesRow] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    transitions: list[AlertTransition] = field(default_factory=list)
    deployments: list[DeploymentRow] = field(default_factory=list)
    comparisons: list[ComparisonRow] = field(default_factory=list)
    amended: dict[tuple[str, int], bytes | None] = field(default_factory=dict)  # sketches
    closed: dict[int, ScoredWindows] = field(default_factory=dict)  # the newest of `windows` by start
    window_rows: int = 0

    def count(self, added: Added) -> None:
        self.accepted += added.accepted
        self.late += added.late
        self.duplicates += added.duplicates

    def expire(self, series: str) -> None:
        self.touched.pop(series, None)
        self.expired.append(series)

    def park(self, row: SeriesRow) -> None:
        self.touched.pop(row.series, None)
        if row.series in self.expired:
            self.expired.remove(row.series)
        self.parked[row.series] = row

    def close(self, rows: ScoredWindows, infos: Iterable[SeriesInfo]) -> None:
        self.windows.append(rows)
        self.window_rows += len(rows.series)
        for info in infos:
            self.touched[info.series] = info
        if self.expired:  # a series that came back before its expiry was written
            self.expired = [series for series in self.expired if series not in self.touched]
        self.closed[rows.window_start_ms] = rows

    def revise(self, row: RevisedWindow, info: SeriesInfo) -> None:
        self.revisions.append(row)
        self.touched[info.series] = info
        self.amended[row.series, row.window_start_ms] = row.sketch

    def sketch(self, series: str, start_ms: int) -> bytes | None:
        """Of a window that this draft holds, None of any other."""
        found, rows = self.amended.get((series, start_ms)), self.closed.get(start_ms)
        if found is None and rows is not None and series in rows.series:
            found = rows.sketches[rows.series.index(series)]
        return found

    def windows_of(self, series: str, since_ms: int, until_ms: int) -> dict[int, StoredWindow]:
        """Drafted windows of a series that start in [since_ms, until_ms), by start, as they are now."""
        found: dict[int, StoredWindow] = {}
        for rows in self.windows:
            if since_ms <= rows.window_start_ms < until_ms:
                at = bisect_left(rows.series, series)
                if at < len(rows.series) and rows.series[at] == series:
                    found[rows.window_start_ms] = StoredWindow(
                        rows.window_start_ms, rows.statistics[at], bool(rows.is_anomalous[at])
                    )
        for row in self.revisions:
            if row.series == series and since_ms <= row.window_start_ms < until_ms:
                found[row.window_start_ms] = StoredWindow(
                    row.window_start_ms, row.statistics, row.is_anomalous
                )
        return found


@dataclass(slots=True, eq=False)
class OwnedPartition:
    """A partition this process has claimed, with its windows, detector states and alerts."""

    assigned: Assigned
    claim: Claim
    windows: PartitionWindows
    scorer: Scorer
    states: SeriesStates
    alerts: dict[str, AlertState]
    rollouts: Rollouts
    decoder: Decoder
    draft: Draft
    next_offset: int | None
    committed_offset: int | None
    committed_at_s: float  # monotonic
    inbox: deque[Decoding | Decoded | Gap | Undecodable] = field(default_factory=deque)
    read_at_s: float = 0.0  # monotonic time of the newest message
    silence: Silence = field(default_factory=lambda: Silence(0.0))
    stall: AlertRow | None = None  # the alert that tells of it
    commit_took_s: float = 0.0  # the newest one
    told_at_s: float = 0.0  # monotonic time when the ledger was last told whether this partition lags
    resting: bool = False  # the ledger knows that everything is read
    source_paused: bool = False
    ended: bool = False
    gate_ms: int | None = None  # event time at which a model must be decided before reading on
    at_gate: bool = False
    untold_suffix: str = ""  # series have names of their own here, and no incident says so yet
    returning: dict[str, SeriesRow] = field(default_factory=dict)  # parked ones that have a place again

    @property
    def key(self) -> Partition:
        return self.assigned.partition

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and epoch, as the ledger wants them."""
        return (*self.key, self.claim.epoch)

    @property
    def dirty(self) -> bool:
        return self.next_offset is not None and (
            self.next_offset != self.committed_offset
            or bool(self.draft.windows or self.draft.transitions)
            or self.stall_is_over
        )

    @property
    def stall_is_over(self) -> bool:
        """True until the end of the stall is drafted."""
        return self.stall is not None and not self.silence.stalled

    @property
    def event_ms(self) -> int | None:
        """How far event time is: the watermark, or the gate it waits at."""
        return self.gate_ms if self.at_gate else self.windows.watermark_ms

    def park(self, info: SeriesInfo) -> None:
        """A silent series leaves the memory; its state goes to the database with the next commit."""
        state = self.states.dump(info.series) if info.series in self.states else None
        self.draft.park(
            SeriesRow(
                *(info.series, info.model, info.endpoint, info.first_seen_ms, info.last_record_ms),
                window_state=info.state,
                detector_state=state,
            )
        )
        self.states.drop(info.series)
        self.rollouts.drop(info.series)

    def take_back(self, info: SeriesInfo) -> None:
        """A parked series has records again."""
        row = self.draft.parked.pop(info.series, None) or self.returning.pop(info.series)
        recall(info.series, "detector_state", row.detector_state, self.states.load, partition=str(self.key))
        self.draft.touched[info.series] = info

    def rebuilding(self, offset: int) -> bool:
        """True below the claimed offset: such records only rebuild open windows."""
        return self.claim.next_offset is not None and offset < self.claim.next_offset

    def without_known_rejects(self, decoded: Decoded) -> Decoded:
        """Drop what an earlier owner has accounted for: rejects are stored, and stay rejected."""
        if not len(decoded.records) and not decoded.rejected:
            return decoded
        records = decoded.records
        if self.claim.rejected_offsets and len(records) and self.rebuilding(int(records.offsets[0])):
            known = np.fromiter(self.claim.rejected_offsets, np.int64)
            records = records.take(~np.isin(records.offsets, known))
        rejected = [r for r in decoded.rejected if not self.rebuilding(r.offset)]
        return Decoded(records, rejected, decoded.next_offset)

    def first_row_at(self, records: RecordColumns, event_ms: int) -> int | None:
        """Index of the first unaccounted record at or behind event time `event_ms`, None without one."""
        ahead = records.timestamp_ms >= event_ms
        if self.claim.next_offset is not None:
            ahead &= records.offsets >= self.claim.next_offset
        hits = np.flatnonzero(ahead)
        return int(hits[0]) if len(hits) else None

    def horizon_ms(self, from_ms: int, max_windows: int) -> int:
        """How far event time may go from `from_ms` at once: until about `max_windows` windows are closed, of
        MAX_STARTS starts at the most."""
        spans = max(min(max_windows // max(self.windows.live_series, 1), MAX_STARTS), 1)
        return from_ms + spans * self.windows.window_ms

    def first_row_beyond(self, records: RecordColumns, max_windows: int) -> Far | None:
        """The first unaccounted record that would close more windows than are worked on at once."""
        if not len(records):
            return None
        from_ms, mark_ms = int(records.timestamp_ms[0]), self.windows.watermark_ms
        if mark_ms is not None:  # where no series lives, nothing closes between the two
            from_ms = mark_ms if self.windows.live_series else max(mark_ms, from_ms)
        horizon_ms = self.horizon_ms(from_ms, max_windows)
        row = self.first_row_at(records, horizon_ms + 1)
        return None if row is None else Far(row, horizon_ms)

    def take_draft(self, now_ms: int) -> Commit:
        """The drafted commit; the draft itself stays until `committed` says the database has it."""
        draft, claim = self.draft, self.claim
        assert self.next_offset is not None
        for info in self.windows.unsaved():
            draft.touched.setdefault(info.series, info)
        scored = [name for name in draft.touched if name in self.states]
        states = dict(zip(scored, self.states.dump_all(scored), strict=True))
        series = [
            SeriesRow(
                series=info.series,
                model=info.model,
                endpoint=info.endpoint,
                first_seen_ms=info.first_seen_ms,
                last_record_ms=info.last_record_ms,
                window_state=info.state,
                detector_state=states.get(info.series),
                alert_state=self.alerts[info.series].to_bytes() if info.series in self.alerts else None,
                rollout_state=self.rollouts.dump(info.series),
            )
            for info in draft.touched.values()
        ]
        return Commit(
            topic=self.key.topic,
            partition=self.key.partition,
            epoch=claim.epoch,
            old_next_offset=self.committed_offset,
            next_offset=self.next_offset,
            restart_offset=self.windows.restart_offset(self.next_offset),
            close_offset=self.windows.close_offset,
            watermark_ms=self.windows.watermark_ms,
            committed_at_ms=now_ms,
            records=draft.accepted + draft.late + draft.duplicates + len(draft.rejected),
            accepted=draft.accepted,
            rejected=len(draft.rejected),
            late=draft.late,
            duplicates=draft.duplicates,
            model_version=self.scorer.version,
            windows=draft.windows,
            revisions=draft.revisions,
            series=series,
            expired_series=draft.expired,
            parked=[draft.parked[name] for name in sorted(draft.parked) if name not in draft.touched],
            rejected_rows=draft.rejected,
            transitions=draft.transitions,
            alerts=[self.alerts[name].alert for name in draft.touched if self._fires(name)],
            deployments=draft.deployments,
            comparisons=draft.comparisons,
            topic_id=self.assigned.topic_id,
            leader_epoch=self.assigned.leader_epoch,
        )

    def _fires(self, series: str) -> bool:
        return series in self.alerts and self.alerts[series].status == "firing"

    def committed(self, now_s: float, took_s: float) -> None:
        self.commit_took_s = took_s
        self.committed_offset = self.next_offset
        self.committed_at_s = now_s
        self.resting = False
        self.windows.saved()
        self.draft = Draft()
