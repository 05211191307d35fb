"""Aggregates of closed windows -> the steps that are handed out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detectors.types import STATISTICS, Float64, WindowBatch
from monitor import sketches
from monitor.series import SeriesTable
from monitor.steps import AmendedWindow, ClosedWindows, Slice

if TYPE_CHECKING:  # loads numba
    from monitor.aggregate import Exemplars, OpenWindow

Int64 = npt.NDArray[np.int64]

SLICES_PER_FIELD = 16


def empty(at_ms: int, window_ms: int, series: SeriesTable, members: Int64) -> ClosedWindows:
    """A window in which none of the members [m] has a record."""
    m = len(members)
    values = np.full((m, len(STATISTICS)), np.nan)
    values[:, 0] = 0.0
    names = [series.names[sid] for sid in members.tolist()]
    batch = WindowBatch(
        *(at_ms, window_ms, names, values, np.zeros_like(values), {}, np.zeros(m, np.bool_)),
    )
    return ClosedWindows(batch, series.infos(members), [None] * m, lambda _: [], _no_exemplars)


def again(step: ClosedWindows, at_ms: int) -> ClosedWindows:
    """The same (empty) windows at another start; the arrays are shared, so that long silences are cheap."""
    return replace(step, batch=replace(step.batch, window_start_ms=at_ms))


def filled(
    window: OpenWindow, window_ms: int, series: SeriesTable, members: Int64, texts: Sequence[str]
) -> ClosedWindows:
    """A window in which some of the members [m] have records. Remembers their model versions."""
    from monitor.window_statistics import metric_means, statistics

    sids = members.tolist()
    place_of = np.empty(max(sids) + 1, np.int64)
    place_of[members] = np.arange(len(sids))
    places = place_of[window.sids]  # by row of the open window
    rank = np.argsort(np.argsort(places))
    rows = np.sort(places)  # by rank: row of the batch
    aggregate = window.close(rank, texts)

    def spread(part: Float64, fill: float) -> Float64:
        whole = np.full((len(sids), *part.shape[1:]), fill)
        whole[rows] = part
        return whole

    values, counts = statistics(aggregate, window_ms)
    values, counts = spread(values, np.nan), spread(counts, 0.0)
    values[np.isnan(values[:, 0]), 0] = 0.0
    means = metric_means(aggregate)
    metrics = {name: (spread(mean, np.nan), spread(n, 0.0)) for name, (mean, n) in means.items()}
    new_version = np.zeros(len(sids), np.bool_)
    deployed: list[tuple[int, str, str]] = []
    shown = {int(rows[r]): records for r, records in sketches.versions(aggregate.slices).items()}
    for row, records in shown.items():
        if series.shows_the_same(sids[row], records):
            continue
        found = series.show_versions(sids[row], records)
        before = series.settle(sids[row], records)
        new_version[row] = bool(found)
        deployed += [(row, version, before) for version in found]
    blobs = SketchRows(aggregate, new_version[rows].tolist(), rows.tolist(), len(sids))
    details = _Details(rows, aggregate.slices, window.exemplars(rank))
    names = [series.names[sid] for sid in sids]
    batch = WindowBatch(window.start_ms, window_ms, names, values, counts, metrics, new_version)
    return ClosedWindows(
        *(
            batch,
            series.infos(members),
            blobs,
            details.slices,
            details.exemplars,
            tuple(sorted(deployed)),
            shown,
        ),
        by_version=lambda row: window.by_version(details.place_of[row], texts),
    )


def amended(
    late: OpenWindow,
    window_ms: int,
    series: SeriesTable,
    texts: Sequence[str],
    stored: tuple[sketches.Aggregate, bool] | None,
    at_ms: int,
) -> AmendedWindow:
    """The window of one series with its late records. `stored`: what it was, if it had records."""
    from monitor.sketch_writer import encode
    from monitor.window_statistics import metric_means, statistics

    sid = late.sids[0]
    added = late.close(np.zeros(1, np.int64), texts)
    series.seen(*late.times())
    deployed = series.show_versions(sid, sketches.versions(added.slices).get(0, {}))
    merged, is_new = added, bool(deployed)
    if stored is not None:
        merged, is_new = sketches.merge(stored[0], added), is_new or stored[1]
    values, counts = statistics(merged, window_ms)
    metrics = metric_means(merged)
    batch = WindowBatch(
        *(late.start_ms, window_ms, [series.names[sid]], values, counts, metrics, np.array([is_new])),
    )
    blob = encode(merged, [is_new])[0]
    late_records = int(added.sums[0, 0])
    told = tuple(sorted(deployed))
    return AmendedWindow(batch, series.info(sid), blob, late_records, at_ms, told, series.current(sid))


class SketchRows(Sequence[bytes | None]):
    """Sketches by row of a batch, None without records; encoded when first asked for.

    A replay that runs ahead by more than the horizon never asks.
    """

    def __init__(
        self, aggregate: sketches.Aggregate, new_version: list[bool], rows: list[int], length: int
    ) -> None:
        """rows: of the batch, one per row of the aggregate."""
        self._length = length
        self._waiting: tuple[sketches.Aggregate, list[bool], list[int]] | None = aggregate, new_version, rows
        self._blobs: list[bytes | None] = []

    def _encoded(self) -> list[bytes | None]:
        if self._waiting is not None:
            from monitor.sketch_writer import encode

            aggregate, new_version, rows = self._waiting
            self._blobs = [None] * self._length
            for row, blob in zip(rows, encode(aggregate, new_version), strict=True):
                self._blobs[row] = blob
            self._waiting = None
        return self._blobs

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: Any) -> Any:
        return self._encoded()[row]

    def __iter__(self) -> Iterator[bytes | None]:
        return iter(self._encoded())


class _Details:
    """Slices and exemplars of closed windows, put together when asked for."""

    def __init__(self, rows: Int64, slices: sketches.Slices, exemplars: Exemplars) -> None:
        """rows: [r], the rows of the batch that have records; the rest is aligned with it."""
        self.place_of = {row: place for place, row in enumerate(rows.tolist())}
        self._slices, self._exemplars = slices, exemplars

    def slices(self, row: int) -> list[Slice]:
        if row not in self.place_of:
            return []
        taken = [0] * len(sketches.SLICE_FIELDS)
        found = []
        for f, value, records, errors, timed, total_ms in sketches.slice_rows(
            self._slices, self.place_of[row]
        ):
            taken[f] += 1
            if taken[f] <= SLICES_PER_FIELD:
                mean_ms = total_ms / timed if timed else float("nan")
                found.append(Slice(sketches.SLICE_FIELDS[f], value, records, errors, mean_ms))
        return found

    def exemplars(self, row: int) -> dict[str, list[str]]:
        if row not in self.place_of:
            return _no_exemplars(row)
        return dict(zip(("slow", "error", "any"), self._exemplars.of(self.place_of[row]), strict=True))


def _no_exemplars(_: int) -> dict[str, list[str]]:
    return {"slow": [], "error": [], "any": []}
