"""Finds the values inside record batches, and the lines of a block. Loads numba: import lazily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.formats.words import HIGHS, ONES, byte_at, first_marked, word_at
from monitor.sources.base import Int64
from monitor.tables import compiled

UInt8 = npt.NDArray[np.uint8]

_NEWLINES = np.uint64(10) * ONES
_LOW_BITS = ~HIGHS


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


@compiled
def _newlines(at: int) -> np.uint64:
    """The high bit of every byte of the eight at an address that is a newline."""
    word = word_at(at) ^ _NEWLINES
    return np.uint64(~(((word & _LOW_BITS) + _LOW_BITS) | word | _LOW_BITS))


@compiled
def count_lines(buffer: UInt8) -> int:
    """How many newlines there are."""
    base: int = np.int64(buffer.ctypes.data)  # type: ignore[assignment] # signed, as compiled code needs it
    size, found = len(buffer), 0
    whole = size - size % 8
    for at in range(0, whole, 8):
        marked = _newlines(base + at)
        while marked != 0:
            marked &= marked - np.uint64(1)
            found += 1
    for at in range(whole, size):
        found += byte_at(base + at) == 10
    return found


@compiled
def cut_lines(
    buffer: UInt8, line: int, first: int, offsets: Int64, starts: Int64, ends: Int64
) -> tuple[int, int]:
    """Fill number, start and end of the lines that are not empty and not before number `first`.

    The buffer begins with line number `line`; a carriage return before the newline does not belong to it.
    Returns how many lines were kept and the place behind the last newline.
    """
    base: int = np.int64(buffer.ctypes.data)  # type: ignore[assignment] # signed, as compiled code needs it
    size, start, kept, at = len(buffer), 0, 0, 0
    while at < size:
        if at + 8 <= size:
            marked = _newlines(base + at)
        else:
            marked = np.uint64(0)
            for i in range(size - at):
                if byte_at(base + at + i) == 10:
                    marked |= np.uint64(0x80) << np.uint64(8 * i)
        while marked != 0:
            newline = at + first_marked(marked)
            marked &= marked - np.uint64(1)
            end = newline - 1 if newline > start and byte_at(base + newline - 1) == 13 else newline
            if end > start and line >= first:
                offsets[kept], starts[kept], ends[kept] = line, start, end
                kept += 1
            start = newline + 1
            line += 1
        at += 8
    return kept, start


def warm_up() -> None:
    """Load or compile before the first record waits for it."""
    none = np.empty(0, np.int64)
    cut_out(np.frombuffer(memoryview(b"\0"), np.uint8), np.empty((0, 4), np.int64), 0, none, none, none)


@compiled
def gathered(buffer: UInt8, starts: Int64, ends: Int64) -> UInt8:
    """The bytes buffer[starts[i]:ends[i]], one behind the other; a start below zero has none."""
    size = 0
    for i in range(len(starts)):
        size += ends[i] - starts[i] if starts[i] >= 0 else 0
    found, at = np.empty(size, np.uint8), 0
    for i in range(len(starts)):
        if starts[i] >= 0:
            for place in range(starts[i], ends[i]):
                found[at] = buffer[place]
                at += 1
    return found
