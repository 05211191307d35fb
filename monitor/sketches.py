"""Mergeable aggregates of windows: sums, extremes and log-linear histograms.

The buckets of the histograms are an exponent and the five leading bits of a mantissa: the linearly
interpolated mapping of DDSketch (Masson, Rim and Lee, VLDB 2019), found without a logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]
UInt32 = npt.NDArray[np.uint32]
UInt16 = npt.NDArray[np.uint16]
UInt8 = npt.NDArray[np.uint8]

SLICE_FIELDS: tuple[str, ...] = ("model_version", "tenant", "region", "error_type")
SLICE_SLOTS = 32  # values of one field that a window can tell apart, the first ones seen
EXEMPLARS = 5  # request_ids per kind
GRID_CELLS = 256  # parts of a window in which `largest_gap_s` is measured
HISTOGRAMS = 6  # latency, ttft, tpot, queue, input_tokens, output_tokens
BUCKET_SHIFT = 52 - 5
BUCKET_BASE = (1023 - 20) << 5  # the first bucket begins at 2^-20; smaller values count as zero
CODES = 2 + 64 * 32  # 0 = absent, 1 = zero, then 32 buckets for each of 64 powers of two

NUMBERS = ("latency", "ttft", "tpot", "queue", "input", "output", "memory", "gpu", "confidence", "cost")
SUMS: tuple[str, ...] = (
    "records",
    "errors",
    "status_n",
    "throttled",
    "server_errors",
    "finish_n",
    "truncated",
    "labelled",
    "correct",
    *(name for number in NUMBERS for name in (f"{number}_n", number)),
    "confidence_square",
    *("latency_log", "latency_log_square", "input_log", "input_log_square"),
    *("output_log", "output_log_square", "output_zero"),
    *("latency_input_n", "latency_input_x", "latency_input_y", "latency_input_xy"),
    *("latency_output_n", "latency_output_x", "latency_output_y", "latency_output_xy"),
    *("timed_output_ms", "timed_output_tokens"),
)
SUM_INDEX: dict[str, int] = {name: i for i, name in enumerate(SUMS)}


@cache
def bucket_values() -> Float64:
    """The value that stands for each bucket: zero, or the harmonic middle of its borders."""
    low_bits = (np.arange(CODES) - 2 + BUCKET_BASE) << BUCKET_SHIFT
    low, high = low_bits.view(np.float64), (low_bits + (1 << BUCKET_SHIFT)).view(np.float64)
    values = 2.0 * low * high / (low + high)
    values[:2] = 0.0
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Histograms:
    """Sparse histograms of m rows: field h of row r holds buckets[bounds[i]:bounds[i + 1]], ascending,
    with i = r * HISTOGRAMS + h."""

    bounds: Int64  # [m * HISTOGRAMS + 1]
    buckets: UInt16
    counts: UInt32


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """Records by the values of SLICE_FIELDS."""

    bounds: Int64  # [m + 1]; the slices of row r are bounds[r]:bounds[r + 1]
    fields: UInt8  # [s], place in SLICE_FIELDS, ascending inside a row
    ids: Int32  # [s], place in texts
    counts: Int64  # [s, 3]: records, errors, records with latency
    latency: Float64  # [s], sum, ms
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """Everything known about m windows, one row each; rows can be merged and stored."""

    sums: Float64  # [m, len(SUMS)]
    minima: Float64  # [m, HISTOGRAMS], inf = absent
    maxima: Float64  # [m, HISTOGRAMS + 1], -inf = absent; the last one is memory
    grid: UInt8  # [m, GRID_CELLS], 1 = a record fell into this part of the window
    histograms: Histograms
    key_bounds: Int64  # [m + 1]
    keys: UInt64  # request keys, without the zeros
    pair_bounds: Int64  # [m + 1]
    pairs: UInt32  # hashes of the distinct (tenant, input_tokens)
    slices: Slices
    metric_names: list[str] = field(default_factory=list)
    metric_sums: Float64 = field(default_factory=lambda: np.zeros((1, 0)))  # [m, names]
    metric_counts: Float64 = field(default_factory=lambda: np.zeros((1, 0)))

    def __len__(self) -> int:
        return len(self.sums)


SliceRow = tuple[int, str, int, int, int, float]
"""(field, value, records, errors, records with latency, sum of latency_ms)"""


def slice_rows(slices: Slices, row: int) -> list[SliceRow]:
    """Slices of a row, by field, then most records first, then by value."""
    part = slice(int(slices.bounds[row]), int(slices.bounds[row + 1]))
    values = [slices.texts[i] for i in slices.ids[part].tolist()]
    counts, latency = slices.counts[part].tolist(), slices.latency[part].tolist()
    found = [
        (f, value, *three, total)
        for f, value, three, total in zip(slices.fields[part].tolist(), values, counts, latency, strict=True)
    ]
    return sorted(found, key=lambda each: (each[0], -each[2], each[1]))


def versions(slices: Slices) -> dict[int, dict[str, int]]:
    """Row -> the model versions that it holds and their records; rows without one are absent."""
    held: dict[int, dict[str, int]] = {}
    at = np.flatnonzero(slices.fields == SLICE_FIELDS.index("model_version"))
    rows = np.searchsorted(slices.bounds, at, side="right") - 1
    records = slices.counts[at, 0].tolist()
    for row, i, n in zip(rows.tolist(), slices.ids[at].tolist(), records, strict=True):
        held.setdefault(row, {})[slices.texts[i]] = n
    return held


def _slices_of(rows: Sequence[SliceRow]) -> Slices:
    """Slices of one row; the first SLICE_SLOTS values of every field are kept."""
    taken = [0] * len(SLICE_FIELDS)
    kept: list[SliceRow] = []
    for each in rows:
        taken[each[0]] += 1
        if taken[each[0]] <= SLICE_SLOTS:
            kept.append(each)
    return Slices(
        bounds=np.array([0, len(kept)]),
        fields=np.array([each[0] for each in kept], np.uint8),
        ids=np.arange(len(kept), dtype=np.int32),
        counts=np.array([each[2:5] for each in kept], np.int64).reshape(-1, 3),
        latency=np.array([each[5] for each in kept], np.float64),
        texts=[each[1] for each in kept],
    )


def _merge_histograms(a: Histograms, b: Histograms) -> Histograms:
    """Of one row each."""
    dense = np.zeros((HISTOGRAMS, CODES), np.uint32)
    for side in (a, b):
        dense[np.repeat(np.arange(HISTOGRAMS), np.diff(side.bounds)), side.buckets] += side.counts
    field, buckets = np.nonzero(dense)
    bounds = np.searchsorted(field, np.arange(HISTOGRAMS + 1))
    return Histograms(bounds, buckets.astype(np.uint16), dense[field, buckets])


def merge(a: Aggregate, b: Aggregate) -> Aggregate:
    """Two aggregates of one row each, over different records, as one. Commutative and associative.

    (Up to the rounding of sums, and as long as no field has more than SLICE_SLOTS values.)
    """
    assert len(a) == len(b) == 1
    sliced: dict[tuple[int, str], SliceRow] = {}
    for f, value, records, errors, timed, total in (*slice_rows(a.slices, 0), *slice_rows(b.slices, 0)):
        held = sliced.get((f, value), (f, value, 0, 0, 0, 0.0))
        sliced[f, value] = (f, value, held[2] + records, held[3] + errors, held[4] + timed, held[5] + total)
    slices = _slices_of(sorted(sliced.values(), key=lambda each: (each[0], -each[2], each[1])))
    keys = np.sort(np.concatenate([a.keys, b.keys]))
    pairs = np.union1d(a.pairs, b.pairs)
    names = sorted({*a.metric_names, *b.metric_names})
    metric_sums, metric_counts = np.zeros((1, len(names))), np.zeros((1, len(names)))
    for side in (a, b):
        at = [names.index(name) for name in side.metric_names]
        metric_sums[0, at] += side.metric_sums[0]
        metric_counts[0, at] += side.metric_counts[0]
    return Aggregate(
        sums=a.sums + b.sums,
        minima=np.minimum(a.minima, b.minima),
        maxima=np.maximum(a.maxima, b.maxima),
        grid=a.grid | b.grid,
        histograms=_merge_histograms(a.histograms, b.histograms),
        key_bounds=np.array([0, len(keys)]),
        keys=keys,
        pair_bounds=np.array([0, len(pairs)]),
        pairs=pairs,
        slices=slices,
        metric_names=names,
        metric_sums=metric_sums,
        metric_counts=metric_counts,
    )
