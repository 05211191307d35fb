"""Building and cutting raw batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.sources.base import Int64, Partition, RawBatch


def pack(
    partition: Partition,
    offsets: Sequence[int],
    values: Sequence[bytes | None],
    next_offset: int | None = None,
) -> RawBatch:
    """Messages with ascending offsets as one batch; None = tombstone.

    `next_offset` defaults to the last offset plus one; without messages it must be given.
    """
    present = np.fromiter((value is not None for value in values), np.bool_, len(values))
    lengths = np.fromiter((len(value) if value else 0 for value in values), np.int64, len(values))
    ends = np.cumsum(lengths)
    starts = np.where(present, ends - lengths, -1)
    if next_offset is None:
        next_offset = offsets[-1] + 1
    buffer = b"".join([value for value in values if value])
    return RawBatch(partition, np.array(offsets, np.int64), buffer, starts, ends, next_offset)


def cut(batch: RawBatch, first: int, end: int) -> RawBatch:
    """Messages `first` up to, not including, `end` of a batch, over the same buffer."""
    next_offset = batch.next_offset if end >= len(batch) else int(batch.offsets[end])
    rows = slice(first, end)
    return RawBatch(
        batch.partition, batch.offsets[rows], batch.buffer, batch.starts[rows], batch.ends[rows], next_offset
    )


def row_of(offsets: Int64, offset: int) -> int:
    """The first row at or behind an offset."""
    return int(np.searchsorted(offsets, offset))
