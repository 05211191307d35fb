"""What is read of a partition's past: its series with their states, alerts, and rejected offsets."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from storage import schema
from storage.rows import decode_alert, series_key
from storage.schema import table
from storage.series_rows import MAX_IDS
from storage.types import AlertRow, SeriesRow

PARTITIONS, SERIES = table(schema.PartitionTable), table(schema.SeriesTable)
REJECTS = table(schema.RejectTable)
ALERTS, TRANSITIONS = table(schema.AlertTable), table(schema.TransitionTable)

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


def firing_alert(connection: Connection, series: str) -> AlertRow | None:
    """The alert of a series that fires, as it was at its newest step; None without one that can be read."""
    steps = (
        select(TRANSITIONS.c.alert)
        .join(ALERTS, ALERTS.c.alert_id == TRANSITIONS.c.alert_id)
        .where(ALERTS.c.series == series_key(series), ALERTS.c.status == "firing")
        .order_by(TRANSITIONS.c.id.desc())
        .limit(1)
    )
    newest = connection.execute(steps).scalar()
    try:
        return None if newest is None else decode_alert(newest)
    except msgspec.MsgspecError:
        return None
