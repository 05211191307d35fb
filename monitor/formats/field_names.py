"""The known fields of a record, found by name in compiled code. Loads numba: import lazily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.formats.native import FIELDS, MAX_NUMBER, SHARES
from monitor.formats.tokens import word
from monitor.record_types import NUMBER_FIELDS, TEXT_FIELDS
from monitor.tables import compiled

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

TIME, TEXT, ID, STATUS, NUMBER, OUTCOME, METRICS = range(7)
UNKNOWN = -1
_TABLE_BITS = 7
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _kind(name: str) -> int:
    if name in TEXT_FIELDS:
        return TEXT
    if name in NUMBER_FIELDS:
        return NUMBER
    special = {"timestamp": TIME, "request_id": ID, "status": STATUS, "metrics": METRICS}
    return special.get(name, OUTCOME)


def _slot(name: str) -> int:
    for names in (TEXT_FIELDS, NUMBER_FIELDS, ("prediction", "label")):
        if name in names:
            return names.index(name)
    return 0


def _words(name: str) -> tuple[int, int]:
    padded = name.encode().ljust(16, b"\0")
    return int.from_bytes(padded[:8], "little"), int.from_bytes(padded[8:], "little")


def _key_place(low: int, high: int, length: int) -> int:
    mixed = (low ^ high * 31 ^ length) * int(MULTIPLIER) & (1 << 64) - 1
    return mixed >> (64 - _TABLE_BITS)


def _key_table() -> tuple[UInt64, UInt64, Int64, Int64]:
    """Open addressing over the known names, each as two words and a length (0 = a free place)."""
    size = 1 << _TABLE_BITS
    low, high = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    length, field = np.zeros(size, np.int64), np.full(size, UNKNOWN, np.int64)
    for place_of, name in enumerate(FIELDS):
        assert len(name) <= 16
        a, b = _words(name)
        place = _key_place(a, b, len(name))
        while length[place]:
            place = (place + 1) % size
        low[place], high[place], length[place], field[place] = a, b, len(name), place_of
    return low, high, length, field


_KEY_LOW, _KEY_HIGH, _KEY_LENGTH, _KEY_FIELD = _key_table()
KINDS = np.array([_kind(name) for name in FIELDS], np.int64)
SLOTS = np.array([_slot(name) for name in FIELDS], np.int64)
HIGHEST = np.array([1.0 if name in SHARES else MAX_NUMBER for name in NUMBER_FIELDS])
REQUIRED = 1 << FIELDS.index("timestamp") | 1 << FIELDS.index("model")


@compiled
def field_of(start: int, length: int) -> int:
    """The number of a known field, -1 for another name."""
    if length > 16 or length == 0:
        return UNKNOWN
    low = word(start, length)
    high = word(start + 8, length - 8) if length > 8 else np.uint64(0)
    mixed = (low ^ high * np.uint64(31) ^ np.uint64(length)) * MULTIPLIER
    place = np.int64(mixed >> np.uint64(64 - _TABLE_BITS))
    while _KEY_LENGTH[place] != 0:
        if _KEY_LENGTH[place] == length and _KEY_LOW[place] == low and _KEY_HIGH[place] == high:
            return int(_KEY_FIELD[place])
        place = (place + 1) & ((1 << _TABLE_BITS) - 1)
    return UNKNOWN
