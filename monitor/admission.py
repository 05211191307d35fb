"""The cap on live series: who gets a place, who makes room, and what is counted under the overflow series.

Decisions follow the order of the log alone: they depend neither on how it is cut into batches nor on
restarts. Between two moves of the frontier places only fill up, so after the first series that finds none,
no other new series finds one before the frontier moves again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from monitor.series import FOREVER_MS, SeriesInfo, SeriesTable
from monitor.sources.base import Partition
from monitor.steps import CapReached, ParkedSeries, ReturnedSeries, Step

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

OVERFLOW_MODEL = "(overflow)"
IDLE_WINDOWS = 5  # a series must have been silent for so many closed windows before it makes room for another

ParkedLoader = Callable[[list[str]], list[SeriesInfo]]
"""names -> those of them that are parked (evicted from memory with their state kept)."""


def overflow_name(partition: Partition) -> tuple[str, str, str]:
    """(series, model, endpoint) of the series that counts the records of series without a place."""
    return f"{OVERFLOW_MODEL}/{partition}", OVERFLOW_MODEL, str(partition)


@dataclass(slots=True)
class Admission:
    """Places for the series of one partition: at most `limit`, the overflow series not counted."""

    series: SeriesTable
    partition: Partition
    limit: int
    idle_ms: int
    empty_for_ms: int
    load_parked: ParkedLoader
    refused: int = 0  # records of the call under way that are counted under the overflow series
    _parked: dict[str, SeriesInfo] = field(default_factory=dict)  # by the call under way

    def begin(self) -> None:
        """A new call: what earlier ones parked can be asked of `load_parked`."""
        self._parked.clear()
        self.refused = 0

    @property
    def overflow(self) -> int:
        """sid of the overflow series, made where it is missing."""
        sid = self.series.make(*overflow_name(self.partition))
        self.series.admit(sid, -1)
        return sid

    @property
    def overflowing(self) -> bool:
        """True while the overflow series is live."""
        sid = self.series.find(overflow_name(self.partition)[0])
        return sid is not None and bool(self.series.first_ms[sid] < FOREVER_MS)

    def admit(
        self, sids: Int32, offsets: Int64, rows: Int64, frontier_ms: int, held: Sequence[Int32]
    ) -> list[Step]:
        """Make sure that every series of `rows` has a place; where none is left, sid becomes the overflow's.

        sids, offsets: [n], of a batch, the former is changed in place; rows: ascending, all behind the
        same frontier; held: sids of records that wait. Returns the steps this took.
        """
        wanted = sids[rows]
        if self.series.admitted[wanted].all():
            return []
        found, at = np.unique(wanted, return_index=True)
        first_of = dict(zip(found.tolist(), at.tolist(), strict=True))
        queue = [(place, sid) for sid, place in first_of.items() if not self.series.admitted[sid]]
        heapq.heapify(queue)
        steps: list[Step] = []
        victims: Iterator[int] | None = None
        admitted: list[tuple[int, int]] = []
        while queue:
            place, sid = queue[0]
            if self.series.count >= self.limit:
                if victims is None:
                    victims = self._victims(frontier_ms, held)
                victim = next((v for v in victims if first_of.get(v, len(rows)) > place), None)
                if victim is None:
                    break
                steps.append(self._park(victim, frontier_ms))
                if victim in first_of:
                    heapq.heappush(queue, (first_of[victim], victim))
            heapq.heappop(queue)
            self.series.admit(sid, int(offsets[rows[place]]) if self.overflowing else -1)
            admitted.append((place, sid))
        steps += self._welcome_back(admitted, frontier_ms)
        if queue:
            if not self.overflowing:
                steps.append(CapReached(frontier_ms, self.limit, overflow_name(self.partition)[0]))
            refused = np.isin(wanted, [sid for _, sid in queue])
            self.refused += int(np.count_nonzero(refused))
            sids[rows[refused]] = self.overflow
        return steps

    def admit_again(self, sids: Int32, offsets: Int64) -> None:
        """Records of before a restart: each goes where it went then; sids [n] is changed in place."""
        if self.overflowing:
            refused = ~self.series.admitted[sids] | (self.series.since[sids] > offsets)
            sids[refused] = self.overflow
            return
        for sid in np.unique(sids[~self.series.admitted[sids]]).tolist():
            self.series.admit(sid, -1)

    def _victims(self, frontier_ms: int, held: Sequence[Int32]) -> Iterator[int]:
        """Silent series, the longest silent one first."""
        series = self.series
        silent = series.admitted & (series.first_ms < FOREVER_MS)
        silent &= series.last_ms < frontier_ms - self.idle_ms
        if held:
            silent[np.concatenate(held)] = False
        sid = series.find(overflow_name(self.partition)[0])
        if sid is not None:
            silent[sid] = False
        found = np.flatnonzero(silent).tolist()
        return iter(sorted(found, key=lambda each: (int(series.last_ms[each]), series.names[each])))

    def _park(self, sid: int, frontier_ms: int) -> ParkedSeries:
        info = self._parked[self.series.names[sid]] = self.series.info(sid)
        self.series.expire(np.array([sid]))
        return ParkedSeries(frontier_ms, [info])

    def _welcome_back(self, admitted: list[tuple[int, int]], frontier_ms: int) -> list[Step]:
        """Those that had been parked, and are not forgotten meanwhile, get back what they were."""
        names = [self.series.names[sid] for _, sid in admitted]
        here = [self._parked.pop(name) for name in names if name in self._parked]
        known = {info.series for info in here}
        stored = self.load_parked([name for name in names if name not in known])
        back = [info for info in [*here, *stored] if frontier_ms - info.last_record_ms <= self.empty_for_ms]
        for info in back:
            self.series.restore(info)
        back.sort(key=lambda info: info.series)
        return [ReturnedSeries(back)] if back else []
