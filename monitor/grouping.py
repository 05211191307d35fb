"""Compiled steps of closing a window: entries in the order of the log -> rows. Loads numba: import lazily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.sketches import CODES
from monitor.tables import compiled

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]
UInt16 = npt.NDArray[np.uint16]


@compiled
def order_by_row(entry_row: Int32, entries: int, rank: Int64) -> tuple[Int64, Int64]:
    """Stable counting sort: order [entries], and bounds [rows + 1] of the rows, in rank order."""
    bounds = np.zeros(len(rank) + 1, np.int64)
    for entry in range(entries):
        bounds[rank[entry_row[entry]] + 1] += 1
    bounds = np.cumsum(bounds)
    fill = bounds.copy()
    order = np.empty(entries, np.int64)
    for entry in range(entries):
        row = rank[entry_row[entry]]
        order[fill[row]] = entry
        fill[row] += 1
    return order, bounds


@compiled
def sparse_histograms(codes: UInt16, order: Int64, bounds: Int64) -> tuple[Int64, UInt16, UInt32]:
    """codes: [entries, HISTOGRAMS] -> bounds, buckets and counts as sketches.Histograms has them."""
    fields = codes.shape[1]
    scratch = np.zeros(CODES, np.int64)
    out_bounds = np.zeros((len(bounds) - 1) * fields + 1, np.int64)
    buckets = np.empty(len(order) * fields, np.uint16)
    counts = np.empty(len(order) * fields, np.uint32)
    size = 0
    for row in range(len(bounds) - 1):
        for f in range(fields):
            low, high = CODES, 0
            for j in range(bounds[row], bounds[row + 1]):
                code = int(codes[order[j], f])
                if code != 0:
                    scratch[code] += 1
                    low, high = min(low, code), max(high, code)
            for code in range(low, high + 1):
                if scratch[code] != 0:
                    buckets[size] = code
                    counts[size] = scratch[code]
                    scratch[code] = 0
                    size += 1
            out_bounds[row * fields + f + 1] = size
    return out_bounds, buckets[:size].copy(), counts[:size].copy()
