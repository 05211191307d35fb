"""What a compiled scan of messages fills: one array per field, dictionaries for the texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from monitor.record_types import NUMBER_FIELDS, TEXT_FIELDS

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
UInt64 = npt.NDArray[np.uint64]

SLOW, TAKEN, TOMBSTONE, TOO_LARGE = 0, 1, 2, 3  # what became of a row
GUESSED = 32  # fields of a row, one behind the other
NAMES = len(TEXT_FIELDS)  # the dictionary that holds the names of user metrics


class Scan(NamedTuple):
    """What `scan` fills for n rows; a row that was not TAKEN holds nothing that counts."""

    state: Int8  # [n]
    timestamp_ms: Int64  # [n]
    numbers: Float64  # [10, n], as NUMBER_FIELDS, NaN = absent
    status: Int32  # [n]
    correct: Int8  # [n]
    id_start: Int64  # [n], request_id in the buffer; start == end without one
    id_end: Int64  # [n]
    key: UInt64  # [n]
    codes: Int32  # [7, n], as TEXT_FIELDS; place in the dictionary of the field, -1 = absent
    places: Int32  # [8, power of two], open addressing: code + 1
    value_start: Int64  # [8, n + 1], values of the dictionaries in the buffer
    value_end: Int64
    sizes: Int64  # [8], values in each
    metric_row: Int32  # [entries]
    metric_name: Int32  # [entries], code in dictionary NAMES
    metric_value: Float64  # [entries], NaN = null
    entries: Int64  # [1], how many of them are filled
    guesses: Int64  # [GUESSED + 1, 4], for the scanner alone: see there


def room(n: int) -> Scan:
    """Empty columns for n rows, NaN and absent."""
    places, dictionaries, entries = 1 << (2 * n).bit_length(), NAMES + 1, 4 * n + 64
    return Scan(
        state=np.zeros(n, np.int8),
        timestamp_ms=np.zeros(n, np.int64),
        numbers=np.full((len(NUMBER_FIELDS), n), np.nan),
        status=np.zeros(n, np.int32),
        correct=np.full(n, -1, np.int8),
        id_start=np.zeros(n, np.int64),
        id_end=np.zeros(n, np.int64),
        key=np.zeros(n, np.uint64),
        codes=np.full((NAMES, n), -1, np.int32),
        places=np.zeros((dictionaries, places), np.int32),
        value_start=np.empty((dictionaries, n + 1), np.int64),
        value_end=np.empty((dictionaries, n + 1), np.int64),
        sizes=np.zeros(dictionaries, np.int64),
        metric_row=np.empty(entries, np.int32),
        metric_name=np.empty(entries, np.int32),
        metric_value=np.empty(entries),
        entries=np.zeros(1, np.int64),
        guesses=np.zeros((GUESSED + 1, 4), np.int64),
    )
