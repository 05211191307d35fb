"""The rows of series in one commit: made where they are missing, updated by their id where they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, select, update

from storage import schema
from storage.bulk import Assigned, New, update_many, upsert_many
from storage.rows import series_key, upsert
from storage.schema import table
from storage.types import Commit, ScoredWindows, SeriesConflict, SeriesRow

SERIES = table(schema.SeriesTable)
MAX_CACHED_IDS = 200_000
MAX_IDS = 500
_ABOUT = ("model", "endpoint", "partition_id", "live")
_STATES = ("window_state", "detector_state", "alert_state", "rollout_state")
_WINDOWS = ("windows", "last_window_start_ms", "last_score", "last_is_anomalous")
_COLUMNS = ("last_record_ms", *_STATES, *_WINDOWS)
_NEW = ("name", "first_seen_ms", *_ABOUT, *_COLUMNS)

_EXPIRE = (
    update(SERIES)
    .where(SERIES.c.name == bindparam("b_name"), SERIES.c.partition_id == bindparam("b_partition_id"))
    .values(live=False, **dict.fromkeys(_STATES))
)


class _Newest(NamedTuple):
    """How many windows more a series has, and what the newest of them says."""

    windows: int = 0
    start_ms: int | None = None
    score: float | None = None
    is_anomalous: bool | None = None


_NO_WINDOWS = _Newest()


def _newest_of(new: New) -> Assigned:
    """Of a series that had windows in this commit."""
    kept = {name: func.coalesce(new(name), SERIES.c[name]) for name in _WINDOWS[1:]}
    return {"windows": SERIES.c.windows + new("windows"), **kept}


def _known(new: New) -> Assigned:
    """Of a series that lives in this partition. What is about it stays as it is: an index holds some of that,
    and would be written anew for each row."""
    return {name: new(name) for name in _COLUMNS} | _newest_of(new)


class SeriesWriter:
    """Remembers the ids of series that are known to be committed and to live in a partition of ours."""

    def __init__(self, dialect: str) -> None:
        self._ids: dict[int, dict[str, int]] = {}  # by partition
        self._insert = upsert(
            schema.SeriesTable,
            dialect,
            ["name"],
            {name: lambda _, new, name=name: new[name] for name in (*_ABOUT, "last_record_ms", *_STATES)}
            | {name: lambda old, new, name=name: func.coalesce(new[name], old[name]) for name in _WINDOWS[1:]}
            | {"windows": lambda old, new: old["windows"] + new["windows"]},
        )

    def remember(self, partition_id: int, commit: Commit, series_ids: dict[str, int]) -> None:
        """Ids that a committed transaction has shown; not before, for a rollback takes them back."""
        if sum(map(len, self._ids.values())) + len(series_ids) > MAX_CACHED_IDS:
            self._ids.clear()
        known = self._ids.setdefault(partition_id, {})
        known.update((row.series, series_ids[row.series]) for row in commit.series)
        for name in (*commit.expired_series, *(row.series for row in commit.parked)):
            known.pop(name, None)

    def forget(self, partition_id: int) -> None:
        """Somebody else may have had the partition meanwhile."""
        self._ids.pop(partition_id, None)

    def write(self, connection: Connection, commit: Commit, partition_id: int) -> dict[str, int]:
        """All rows of series; returns the ids of those that the commit touches.

        Raises SeriesConflict for one that lives in another partition.
        """
        newest = _newest(commit.windows)
        told = [(row, True) for row in commit.series] + [(row, False) for row in commit.parked]
        names = {row.series for row, _ in told} | newest.keys() | {w.series for w in commit.revisions}
        remembered = self._ids.get(partition_id, {})
        ids = {name: remembered[name] for name in names & remembered.keys()}
        unknown = (names - ids.keys()) | {row.series for row in commit.parked}
        known, fresh, written = [], {}, {row.series for row, _ in told}
        for row, live in told:
            own = newest.get(row.series, _NO_WINDOWS)
            if row.series in unknown:
                fresh[row.series] = _new(row, partition_id, live, own)
            else:
                known.append((*_values(row, own), ids[row.series]))
        update_many(connection, SERIES, _known, (*_COLUMNS, "id"), sorted(known, key=itemgetter(-1)))
        if unknown:
            ids |= self._write_unknown(connection, commit, partition_id, unknown, fresh, newest)
            written |= fresh.keys()
        if commit.expired_series:
            expired = [
                {"b_name": series_key(name), "b_partition_id": partition_id} for name in commit.expired_series
            ]
            connection.execute(_EXPIRE, expired)
        ended = [(*of, ids[name]) for name, of in newest.items() if name not in written]
        update_many(connection, SERIES, _newest_of, (*_WINDOWS, "id"), ended)
        return ids

    def _write_unknown(
        self,
        connection: Connection,
        commit: Commit,
        partition_id: int,
        unknown: set[str],
        fresh: dict[str, tuple[object, ...]],
        newest: dict[str, _Newest],
    ) -> dict[str, int]:
        """Ids of series that were not known; `fresh` gets those that began and ended within the commit."""
        keys = {name: series_key(name) for name in sorted(unknown)}
        ids = _stored_ids(connection, list(keys.values()), partition_id)
        for name, key in keys.items():
            if name not in fresh and key not in ids:
                row = _ended_row(key, commit)
                fresh[name] = _new(row, partition_id, False, newest.get(name, _NO_WINDOWS))
        newest_id = connection.execute(select(func.max(SERIES.c.id))).scalar() or 0
        by_key = {fresh[name][0]: fresh[name] for name in sorted(fresh)}
        upsert_many(connection, SERIES, self._insert, _NEW, list(by_key.values()))
        made = (SERIES.c.partition_id == partition_id) & (SERIES.c.id > newest_id)
        ids.update(tuple(row) for row in connection.execute(select(SERIES.c.name, SERIES.c.id).where(made)))
        others = [key for key in keys.values() if key not in ids]  # another owner made it at the same time
        ids |= _stored_ids(connection, others, partition_id)
        return {name: ids[key] for name, key in keys.items()}


def _new(row: SeriesRow, partition_id: int, live: bool, newest: _Newest) -> tuple[object, ...]:
    """As _NEW."""
    about = (series_key(row.model), series_key(row.endpoint), partition_id, live)
    return (series_key(row.series), row.first_seen_ms, *about, *_values(row, newest))


def _values(row: SeriesRow, newest: _Newest) -> tuple[object, ...]:
    """As _COLUMNS."""
    states = (row.window_state, row.detector_state, row.alert_state, row.rollout_state)
    return (row.last_record_ms, *states, *newest)


def _ended_row(name: str, commit: Commit) -> SeriesRow:
    """Of a series that closed its only windows and expired, all within one commit."""
    starts = [batch.window_start_ms for batch in commit.windows]
    model, _, endpoint = name.partition("/")
    first_ms = min(starts, default=commit.committed_at_ms)
    last_ms = max(starts, default=commit.committed_at_ms)
    return SeriesRow(name, model, endpoint, first_ms, last_ms)


def _stored_ids(connection: Connection, names: Sequence[str], partition_id: int) -> dict[str, int]:
    """By name; raises SeriesConflict for a series that lives in another partition."""
    found: dict[str, int] = {}
    for start in range(0, len(names), MAX_IDS):
        statement = select(SERIES.c.name, SERIES.c.id, SERIES.c.partition_id, SERIES.c.live)
        some = statement.where(SERIES.c.name.in_(names[start : start + MAX_IDS]))
        for name, id_, partition, live in connection.execute(some):
            if live and partition != partition_id:
                raise SeriesConflict(
                    f"series {name!r} arrives in two partitions; key the producer by series so that "
                    "one partition holds all of it"
                )
            found[name] = id_
    return found


def _newest(batches: Iterable[ScoredWindows]) -> dict[str, _Newest]:
    windows: Counter[str] = Counter()
    newest: dict[str, tuple[int, float, bool]] = {}
    for batch in sorted(batches, key=lambda each: each.window_start_ms):
        windows.update(batch.series)
        start = repeat(batch.window_start_ms, len(batch.series))
        said = zip(start, batch.score.tolist(), batch.is_anomalous.tolist(), strict=True)
        newest.update(zip(batch.series, said, strict=True))
    return {series: _Newest(windows[series], *last) for series, last in newest.items()}
