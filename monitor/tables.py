"""What compiled code works on: record columns and the table of an open window. Loads numba: import lazily."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
UInt64 = npt.NDArray[np.uint64]
UInt32 = npt.NDArray[np.uint32]
UInt16 = npt.NDArray[np.uint16]
UInt8 = npt.NDArray[np.uint8]

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """Compile at the first call, cached on disk; other threads run meanwhile."""
    machine_code: Any = numba.njit(cache=True, nogil=True)(function)
    return cast(_Function, machine_code)


def inlined(function: _Function) -> _Function:
    """Compile into every caller: for functions that are handed tables, which cost more than they do."""
    machine_code: Any = numba.njit(inline="always", cache=True, nogil=True)(function)
    return cast(_Function, machine_code)


class Columns(NamedTuple):
    """n records, ready to be counted. Text is given by ids of a table, -1 = absent."""

    sid: Int32  # [n], series
    timestamp_ms: Int64  # [n]
    numbers: Float64  # [10, n], rows as monitor.records.NUMBER_FIELDS, NaN = absent
    status: Int32  # [n], 0 = absent
    is_error: Int8  # [n]
    correct: Int8  # [n], -1 = no label
    truncated: Int8  # [n], finish_reason is "length"; -1 = absent
    key: UInt64  # [n], request, 0 = none
    texts: Int32  # [4, n], rows as sketches.SLICE_FIELDS
    tenant_hash: UInt64  # [n]


class Table(NamedTuple):
    """What an open window knows per series ("row") and, briefly, per record ("entry")."""

    sums: Float64  # [rows, len(SUMS)]
    minima: Float64  # [rows, HISTOGRAMS]
    maxima: Float64  # [rows, HISTOGRAMS + 1], the last one is memory
    grid: UInt8  # [rows, GRID_CELLS], 1 = a record fell into this part of the window
    first_ms: Int64  # [rows]
    last_ms: Int64  # [rows]
    slice_ids: Int32  # [rows, 4, SLICE_SLOTS], text id + 1, 0 = free
    slice_counts: Int64  # [rows, 4, SLICE_SLOTS, 3]: records, errors, records with latency
    slice_latency: Float64  # [rows, 4, SLICE_SLOTS], sum, ms
    slowest_ms: Float64  # [rows, EXEMPLARS]
    exemplars: (
        Int32  # [rows, 3, EXEMPLARS]: slow, error, any; 0 free, 1 settled, 2 + i = record i of the batch
    )
    entry_row: Int32  # [entries]
    entry_key: UInt64  # [entries]
    entry_pair: UInt32  # [entries], hash of (tenant, input_tokens); 0 = absent or seen before
    entry_codes: UInt16  # [entries, HISTOGRAMS], bucket, 0 = absent
    seen_keys: Int32  # [power of two], open addressing: entry + 1
    seen_pairs: Int32
