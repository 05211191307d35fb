"""Finds the values inside record batches. Loads numba: import lazily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.sources.base import Int64
from monitor.tables import compiled

UInt8 = npt.NDArray[np.uint8]


@compiled
def _varint(buffer: UInt8, at: int, end: int) -> tuple[int, int]:
    """(behind it, value) of a zigzag varint, (-1, 0) if it does not end before `end`."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = np.uint64(buffer[at])
        at += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            return at, int(np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)))
        shift += np.uint64(7)
    return -1, 0


@compiled
def cut_out(
    buffer: UInt8, places: Int64, first_offset: int, offsets: Int64, starts: Int64, ends: Int64
) -> int:
    """Fill offsets, starts and ends (-1 = no value) of the records at or behind `first_offset`.

    places: [batches, 4], base offset, number of records, first and last place of them in the buffer.
    Returns how many records were kept, or -1 - b when batch b does not hold what it says.
    """
    kept = 0
    for b in range(len(places)):
        base, records, at, end = places[b, 0], places[b, 1], places[b, 2], places[b, 3]
        for _ in range(records):
            at, length = _varint(buffer, at, end)
            stop = at + length
            if at < 0 or length < 1 or stop > end:
                return -1 - b
            at, _time = _varint(buffer, at + 1, stop)  # behind the attributes
            if at < 0:
                return -1 - b
            at, delta = _varint(buffer, at, stop)
            if at < 0:
                return -1 - b
            at, key_length = _varint(buffer, at, stop)
            if at < 0 or key_length > stop - at:
                return -1 - b
            at, value_length = _varint(buffer, at + max(key_length, 0), stop)
            if at < 0 or value_length > stop - at:
                return -1 - b
            if base + delta >= first_offset:
                offsets[kept] = base + delta
                starts[kept] = at if value_length >= 0 else -1
                ends[kept] = at + max(value_length, 0)
                kept += 1
            at = stop
        if at != end:
            return -1 - b
    return kept


def warm_up() -> None:
    """Load or compile before the first record waits for it."""
    none = np.empty(0, np.int64)
    cut_out(np.frombuffer(memoryview(b"\0"), np.uint8), np.empty((0, 4), np.int64), 0, none, none, none)
