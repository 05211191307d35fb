"""What the windows of a partition hand out: the steps of a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from detectors.paired import Records
from detectors.types import WindowBatch
from monitor.series import SeriesInfo

SketchLoader = Callable[[str, int], bytes | None]
"""(series, window_start_ms) -> the stored sketch of a closed window, None if it is beyond the horizon."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One value of one field inside a window, to find out who is guilty."""

    field: str  # "model_version" | "tenant" | "region" | "error_type"
    value: str
    records: int
    errors: int
    latency_mean_ms: float  # NaN without latencies


@dataclass(frozen=True, slots=True)
class ClosedWindows:
    """All windows of the partition with one start, closed together; rows align with batch.series."""

    batch: WindowBatch
    infos: list[SeriesInfo]
    sketches: Sequence[bytes | None]  # None for an empty window
    slices: Callable[[int], list[Slice]]  # row -> slices; computed only when asked
    exemplars: Callable[[int], dict[str, list[str]]]  # row -> {"slow": [...], "error": [...], "any": [...]}
    deployed: tuple[tuple[int, str, str], ...] = ()
    """(row, model version seen for the first time in this window, the one that most records had before)"""
    versions: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """row -> records by model version; rows without one are absent"""
    by_version: Callable[[int], dict[str, Records]] = lambda _: {}
    """row -> its records by model version; computed only when asked, which is before the next step"""


@dataclass(frozen=True, slots=True)
class AmendedWindow:
    """A closed window that late records changed: the whole window as it is now (one row)."""

    batch: WindowBatch
    info: SeriesInfo
    sketch: bytes
    late_records: int
    at_ms: int  # event time at which the change counts: end of the next window to close
    deployed: tuple[str, ...] = ()  # model versions that only the late records have shown
    previous: str = ""  # the model version of most records of the newest window


@dataclass(frozen=True, slots=True)
class ExpiredSeries:
    """Series that were silent for longer than empty_for_s; the step before held their last windows."""

    at_ms: int  # end of these windows
    infos: list[SeriesInfo]


@dataclass(frozen=True, slots=True)
class ParkedSeries:
    """Silent series that made room for others: their state is kept in the database, not in memory."""

    at_ms: int  # end of the newest closed window
    infos: list[SeriesInfo]


@dataclass(frozen=True, slots=True)
class ReturnedSeries:
    """Parked series with records again: they go on with the state they had."""

    infos: list[SeriesInfo]


@dataclass(frozen=True, slots=True)
class CapReached:
    """There is no place for another series: records of further ones are counted under `series`."""

    at_ms: int  # end of the newest closed window
    limit: int
    series: str


Step = ClosedWindows | AmendedWindow | ExpiredSeries | ParkedSeries | ReturnedSeries | CapReached


@dataclass(frozen=True, slots=True)
class Added:
    """What a call did. Steps stand in the order in which they happened in the log."""

    steps: list[Step]
    accepted: int = 0
    late: int = 0  # amending or beyond the horizon
    duplicates: int = 0
    refused: int = 0  # of all these, records of series without a place
    expired: tuple[str, ...] = ()  # names of all ExpiredSeries, some of which may be back already
