"""The key of a request id in compiled code, as monitor.records.request_key. Loads numba: import lazily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.formats.words import byte_at, word_at
from monitor.tables import compiled

UInt32 = npt.NDArray[np.uint32]


def _crc_tables(polynomial: int) -> UInt32:
    """[8, 256]: what a byte does to a checksum, with k bytes behind it in the row k."""
    tables = np.zeros((8, 256), np.uint32)
    for n in range(256):
        value = n
        for k in range(8):
            for _ in range(8):
                value = value >> 1 ^ (polynomial if value & 1 else 0)
            tables[k, n] = value
    return tables


_CRC32, _CRC32C = _crc_tables(0xEDB88320), _crc_tables(0x82F63B78)
_ONES_32 = np.uint64(0xFFFFFFFF)


@compiled
def request_key(start: int, end: int) -> np.uint64:
    """As records.request_key."""
    a = b = _ONES_32
    at = start
    while (
        at + 8 <= end
    ):  # eight bytes at once (Kounavis and Berry, "Novel Table Lookup-Based Algorithms", 2008)
        x, y = word_at(at) ^ a, word_at(at) ^ b
        a = b = np.uint64(0)
        for k in range(7, -1, -1):
            a ^= _CRC32[k, x & np.uint64(255)]
            b ^= _CRC32C[k, y & np.uint64(255)]
            x, y = x >> np.uint64(8), y >> np.uint64(8)
        at += 8
    while at < end:
        c = np.uint64(byte_at(at))
        a = _CRC32[0, (a ^ c) & np.uint64(255)] ^ (a >> np.uint64(8))
        b = _CRC32C[0, (b ^ c) & np.uint64(255)] ^ (b >> np.uint64(8))
        at += 1
    key = (a ^ _ONES_32) << np.uint64(32) | (b ^ _ONES_32)
    return key if key != 0 else np.uint64(1)
