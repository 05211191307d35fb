"""Aggregates of windows -> sketches, as monitor.sketch_reader describes them. Loads numba: import lazily."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from monitor.sketch_reader import FORMAT, GRID_BYTES, HEADER, MASK_BYTES, N_NUMBERS, SILENT
from monitor.sketches import HISTOGRAMS, Aggregate
from monitor.tables import Float64, Int64, UInt8, UInt16, UInt32, UInt64, compiled

_HEADER_BYTES = HEADER.size


class _Names(NamedTuple):
    """Strings as UTF-8: name i is data[bounds[i]:bounds[i + 1]]."""

    data: UInt8
    bounds: Int64


class _Parts(NamedTuple):
    """An aggregate of m rows; arrays of entries are cut by the bounds of their rows."""

    is_new: Int64  # [m], 0 or 1
    numbers: Float64  # [m, N_NUMBERS]
    grid: UInt8  # [m, GRID_BYTES]
    histogram_bounds: Int64  # [m * HISTOGRAMS + 1]
    buckets: UInt16
    bucket_counts: Int64
    key_bounds: Int64
    keys: UInt64
    pair_bounds: Int64
    pairs: UInt32
    slice_bounds: Int64
    slice_fields: UInt8
    slice_counts: Int64  # [s, 3]
    slice_latency: Float64
    slice_text: Int64  # place in `texts`
    texts: _Names
    metric_sums: Float64  # [m, names]
    metric_counts: Float64
    metric_names: _Names


def encode(aggregate: Aggregate, new_version: Sequence[bool]) -> list[bytes]:
    """Every row as bytes; `new_version` [m] rides along, as it cannot be computed again."""
    a, slices = aggregate, aggregate.slices
    used, text = np.unique(slices.ids, return_inverse=True)
    parts = _Parts(
        is_new=np.array(new_version, np.int64),
        numbers=np.concatenate([a.sums, a.minima, a.maxima], axis=1),
        grid=np.packbits(a.grid, axis=1),
        histogram_bounds=_as(a.histograms.bounds, np.int64),
        buckets=_as(a.histograms.buckets, np.uint16),
        bucket_counts=_as(a.histograms.counts, np.int64),
        key_bounds=_as(a.key_bounds, np.int64),
        keys=_as(a.keys, np.uint64),
        pair_bounds=_as(a.pair_bounds, np.int64),
        pairs=_as(a.pairs, np.uint32),
        slice_bounds=_as(slices.bounds, np.int64),
        slice_fields=_as(slices.fields, np.uint8),
        slice_counts=_as(slices.counts, np.int64),
        slice_latency=_as(slices.latency, np.float64),
        slice_text=_as(text.reshape(-1), np.int64),
        texts=_names([slices.texts[i] for i in used.tolist()]),
        metric_sums=_as(a.metric_sums, np.float64),
        metric_counts=_as(a.metric_counts, np.float64),
        metric_names=_names(a.metric_names),
    )
    sizes = _sizes(parts)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    out = np.empty(int(bounds[-1]), np.uint8)
    _write(parts, bounds, out)
    whole = out.tobytes()
    return [whole[a:b] for a, b in pairwise(bounds.tolist())]


def _as(array: npt.NDArray[Any], kind: Any) -> npt.NDArray[Any]:
    """Of one type and layout, for which code is compiled once."""
    return np.ascontiguousarray(array, kind)


def _names(texts: Sequence[str]) -> _Names:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return _Names(np.frombuffer(bytearray(b"".join(encoded)), np.uint8), bounds)


@compiled
def _width(highest: int) -> int:
    """Bytes of the narrowest count that holds it."""
    if highest < 1 << 8:
        return 1
    if highest < 1 << 16:
        return 2
    return 4 if highest < 1 << 32 else 8


@compiled
def _widths(p: _Parts, row: int) -> tuple[int, int]:
    """Bytes of a count in the histograms and in the slices of a row."""
    in_buckets = in_slices = 0
    for i in range(p.histogram_bounds[row * HISTOGRAMS], p.histogram_bounds[(row + 1) * HISTOGRAMS]):
        in_buckets = max(in_buckets, int(p.bucket_counts[i]))
    for i in range(p.slice_bounds[row], p.slice_bounds[row + 1]):
        for k in range(3):
            in_slices = max(in_slices, int(p.slice_counts[i, k]))
    return _width(in_buckets), _width(in_slices)


@compiled
def _sizes(p: _Parts) -> Int64:
    """Bytes of every row."""
    sizes = np.empty(len(p.numbers), np.int64)
    for row in range(len(p.numbers)):
        in_buckets, in_slices = _widths(p, row)
        buckets = p.histogram_bounds[(row + 1) * HISTOGRAMS] - p.histogram_bounds[row * HISTOGRAMS]
        size = _HEADER_BYTES + MASK_BYTES + GRID_BYTES + 2 * HISTOGRAMS + buckets * (2 + in_buckets)
        for i in range(N_NUMBERS):
            size += 8 * (p.numbers[row, i] != SILENT[i])
        size += 8 * (p.key_bounds[row + 1] - p.key_bounds[row])
        size += 4 * (p.pair_bounds[row + 1] - p.pair_bounds[row])
        for i in range(p.slice_bounds[row], p.slice_bounds[row + 1]):
            text = p.slice_text[i]
            size += 1 + 3 * in_slices + 8 + 4 + p.texts.bounds[text + 1] - p.texts.bounds[text]
        for m in range(p.metric_counts.shape[1]):
            if p.metric_counts[row, m] > 0.0:
                size += 16 + 4 + p.metric_names.bounds[m + 1] - p.metric_names.bounds[m]
        sizes[row] = size
    return sizes


@compiled
def _put(out: UInt8, at: int, value: int, width: int) -> int:
    """An integer of `width` bytes; returns the place behind it."""
    for i in range(width):
        out[at + i] = (value >> (8 * i)) & 255
    return at + width


@compiled
def _copy(out: UInt8, at: int, source: UInt8, begin: int, end: int) -> int:
    """Bytes as they are; returns the place behind them."""
    for i in range(end - begin):
        out[at + i] = source[begin + i]
    return at + end - begin


@compiled
def _put_header(p: _Parts, row: int, in_buckets: int, in_slices: int, out: UInt8, at: int) -> int:
    measured = 0
    for m in range(p.metric_counts.shape[1]):
        measured += p.metric_counts[row, m] > 0.0
    at = _put(out, at, FORMAT, 1)
    at = _put(out, at, int(p.is_new[row]), 1)
    at = _put(out, at, in_buckets, 1)
    at = _put(out, at, in_slices, 1)
    at = _put(out, at, int(p.slice_bounds[row + 1] - p.slice_bounds[row]), 2)
    at = _put(out, at, measured, 2)
    at = _put(out, at, int(p.key_bounds[row + 1] - p.key_bounds[row]), 4)
    return _put(out, at, int(p.pair_bounds[row + 1] - p.pair_bounds[row]), 4)


@compiled
def _put_numbers(p: _Parts, row: int, out: UInt8, at: int) -> int:
    """Which sums and extremes say something, what they are, and the grid."""
    numbers = p.numbers.reshape(-1).view(np.uint8)
    mask, place = np.uint64(0), at
    at += MASK_BYTES
    for i in range(N_NUMBERS):
        if p.numbers[row, i] != SILENT[i]:
            mask |= np.uint64(1) << np.uint64(i)
            begin = 8 * (row * N_NUMBERS + i)
            at = _copy(out, at, numbers, begin, begin + 8)
    for i in range(MASK_BYTES):
        out[place + i] = (mask >> np.uint64(8 * i)) & np.uint64(255)
    for i in range(GRID_BYTES):
        out[at + i] = p.grid[row, i]
    return at + GRID_BYTES


@compiled
def _put_entries(p: _Parts, row: int, width: int, out: UInt8, at: int) -> int:
    """Histograms, request keys and pairs; width: bytes of a count."""
    first, end = p.histogram_bounds[row * HISTOGRAMS], p.histogram_bounds[(row + 1) * HISTOGRAMS]
    for h in range(row * HISTOGRAMS, (row + 1) * HISTOGRAMS):
        at = _put(out, at, p.histogram_bounds[h + 1] - p.histogram_bounds[h], 2)
    at = _copy(out, at, p.buckets.view(np.uint8), 2 * first, 2 * end)
    for i in range(first, end):
        at = _put(out, at, int(p.bucket_counts[i]), width)
    at = _copy(out, at, p.keys.view(np.uint8), 8 * p.key_bounds[row], 8 * p.key_bounds[row + 1])
    return _copy(out, at, p.pairs.view(np.uint8), 4 * p.pair_bounds[row], 4 * p.pair_bounds[row + 1])


@compiled
def _put_slices(p: _Parts, row: int, width: int, out: UInt8, at: int) -> int:
    """Fields, counts, latencies and texts of the slices; width: bytes of a count."""
    first, end = p.slice_bounds[row], p.slice_bounds[row + 1]
    at = _copy(out, at, p.slice_fields, first, end)
    for i in range(first, end):
        for k in range(3):
            at = _put(out, at, int(p.slice_counts[i, k]), width)
    at = _copy(out, at, p.slice_latency.view(np.uint8), 8 * first, 8 * end)
    for i in range(first, end):
        text = p.slice_text[i]
        at = _put(out, at, p.texts.bounds[text + 1] - p.texts.bounds[text], 4)
    for i in range(first, end):
        text = p.slice_text[i]
        at = _copy(out, at, p.texts.data, p.texts.bounds[text], p.texts.bounds[text + 1])
    return at


@compiled
def _put_metrics(p: _Parts, row: int, out: UInt8, at: int) -> None:
    """Sum, count and name of every metric with values."""
    sums = p.metric_sums.reshape(-1).view(np.uint8)
    counts = p.metric_counts.reshape(-1).view(np.uint8)
    for m in range(p.metric_counts.shape[1]):
        if p.metric_counts[row, m] > 0.0:
            begin = 8 * (row * p.metric_counts.shape[1] + m)
            at = _copy(out, at, sums, begin, begin + 8)
            at = _copy(out, at, counts, begin, begin + 8)
            name, behind = p.metric_names.bounds[m], p.metric_names.bounds[m + 1]
            at = _put(out, at, behind - name, 4)
            at = _copy(out, at, p.metric_names.data, name, behind)


@compiled
def _write(p: _Parts, bounds: Int64, out: UInt8) -> None:
    """Row r into out[bounds[r]:bounds[r + 1]]."""
    for row in range(len(bounds) - 1):
        in_buckets, in_slices = _widths(p, row)
        at = _put_header(p, row, in_buckets, in_slices, out, bounds[row])
        at = _put_numbers(p, row, out, at)
        at = _put_entries(p, row, in_buckets, out, at)
        at = _put_slices(p, row, in_slices, out, at)
        _put_metrics(p, row, out, at)
