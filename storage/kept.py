"""What is read of a partition's past: its series with their states, and the offsets that were rejected."""

from __future__ import annotations

from sqlalchemy import Connection, select

from storage import schema
from storage.rows import series_key
from storage.schema import table
from storage.series_rows import MAX_IDS
from storage.types import SeriesRow

PARTITIONS, SERIES = table(schema.PartitionTable), table(schema.SeriesTable)
REJECTS = table(schema.RejectTable)

_SERIES_ROW = (SERIES.c.name, *(SERIES.c[name] for name in SeriesRow._fields[1:]))


def live_series(connection: Connection, partition_id: int) -> list[SeriesRow]:
    rows = connection.execute(
        select(*_SERIES_ROW).where(SERIES.c.partition_id == partition_id, SERIES.c.live.is_(True))
    )
    return sorted(map(SeriesRow._make, rows), key=lambda r: r.series)


def rejected_offsets(
    connection: Connection, partition_id: int, topic_id: str, first: int | None, end: int | None
) -> frozenset[int]:
    if first is None or end is None:
        return frozenset()
    statement = select(REJECTS.c.offset).where(
        REJECTS.c.partition_id == partition_id,
        REJECTS.c.offset >= first,
        REJECTS.c.offset < end,
        REJECTS.c.topic_id.in_(["", topic_id]),
    )
    return frozenset(connection.execute(statement).scalars())


def parked_series(connection: Connection, topic: str, partition: int, names: list[str]) -> list[SeriesRow]:
    """Those of `names` that were parked in this partition, with their states."""
    found: list[SeriesRow] = []
    for start in range(0, len(names), MAX_IDS):
        keys = {series_key(name): name for name in names[start : start + MAX_IDS]}
        parked = (
            select(*_SERIES_ROW)
            .join(PARTITIONS, PARTITIONS.c.id == SERIES.c.partition_id)
            .where(PARTITIONS.c.topic == topic, PARTITIONS.c.partition == partition)
            .where(SERIES.c.name.in_(list(keys)), SERIES.c.live.is_(False))
            .where(SERIES.c.detector_state.is_not(None))
        )
        rows = map(SeriesRow._make, connection.execute(parked))
        found += [row._replace(series=keys[row.series]) for row in rows]
    return found
