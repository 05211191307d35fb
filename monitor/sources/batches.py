"""Building and cutting raw batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

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
    count = len(values)
    absent: npt.NDArray[np.bool_] | None = None
    filled = cast(Sequence[bytes], values)
    if None in values:
        absent = np.fromiter((value is None for value in values), np.bool_, count)
        filled = [value or b"" for value in values]
    lengths = np.fromiter(map(len, filled), np.int64, count)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if absent is not None:
        starts[absent] = -1
    if next_offset is None:
        next_offset = offsets[-1] + 1
    return RawBatch(partition, np.array(offsets, np.int64), b"".join(filled), starts, ends, next_offset)


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
