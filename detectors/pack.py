"""Statistics of one window <-> bytes, as the database keeps them for training."""

from __future__ import annotations

import struct

import numpy as np

from detectors.types import STATISTICS, Float64

_HEADER = struct.Struct("<BH")  # format version, number of statistics
_VERSION = 1


def pack_rows(values: Float64, counts: Float64) -> list[bytes]:
    """values, counts: [m, len(STATISTICS)] -> one blob per window, about 8 bytes per statistic (float32)."""
    header = np.frombuffer(_HEADER.pack(_VERSION, values.shape[1]), np.uint8)
    both = np.concatenate([values, counts], axis=1).astype("<f4").view(np.uint8)
    rows = np.concatenate([np.broadcast_to(header, (len(both), len(header))), both], axis=1)
    whole, width = rows.tobytes(), rows.shape[1]
    return [whole[at : at + width] for at in range(0, len(whole), width)]


def is_packed(blob: bytes) -> bool:
    """False for bytes that `unpack` refuses."""
    return _stored(blob) is not None


def _stored(blob: bytes) -> int | None:
    """How many statistics a blob holds; None for bytes of another format."""
    if len(blob) < _HEADER.size:
        return None
    version, stored = _HEADER.unpack_from(blob)
    return stored if version == _VERSION and len(blob) == _HEADER.size + 8 * stored else None


def unpack(blobs: list[bytes]) -> tuple[Float64, Float64]:
    """Packed windows -> values, counts: [n, len(STATISTICS)].

    Statistics that were added after a blob was written are NaN with count 0.
    Raises ValueError for bytes of another format.
    """
    width = len(STATISTICS)
    values = np.full((len(blobs), width), np.nan)
    counts = np.zeros((len(blobs), width))
    for i, blob in enumerate(blobs):
        stored = _stored(blob)
        if stored is None:
            raise ValueError(f"no statistics of format {_VERSION}: {blob[:8]!r}, {len(blob)} bytes")
        both = np.frombuffer(blob, "<f4", offset=_HEADER.size)
        known = min(stored, width)
        values[i, :known] = both[:known]
        counts[i, :known] = both[stored : stored + known]
    return values, counts
