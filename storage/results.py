"""The rows of one commit: series, windows, sketches, revisions, rejects, alerts and their transitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, insert, select, update

from storage import schema, text
from storage.bulk import execute_many, insert_many
from storage.rows import (
    WINDOW_COLUMNS,
    Row,
    alert_row,
    encode_alert,
    insert_missing,
    revised_row,
    series_key,
    upsert,
    window_rows,
)
from storage.schema import table
from storage.types import FEATURE_COLUMNS, Commit, RevisedWindow, ScoredWindows, SeriesConflict

SERIES, WINDOWS = table(schema.SeriesTable), table(schema.WindowTable)
DEPLOYMENTS = table(schema.DeploymentTable)
REVISIONS, SKETCHES = table(schema.WindowRevisionTable), table(schema.WindowSketchTable)
MAX_CACHED_IDS = 200_000
MAX_IDS = 500
SAMPLE_LENGTH, REASON_LENGTH = 2_048, 200
_SCORES = ("score", "gbdt_score", "lstm_score", "tail_probability", "is_anomalous", "metrics", "statistics")
_REVISED = (*FEATURE_COLUMNS, *_SCORES)

_THIS_WINDOW = (WINDOWS.c.series_id == bindparam("b_series_id")) & (
    WINDOWS.c.window_start_ms == bindparam("b_window_start_ms")
)
_KEEP_REVISION = insert(REVISIONS).from_select(
    ["series_id", "window_start_ms", "revision", "replaced_at_ms", *_REVISED],
    select(
        WINDOWS.c.series_id,
        WINDOWS.c.window_start_ms,
        WINDOWS.c.revision,
        bindparam("b_replaced_at_ms", type_=BigInteger),
        *(WINDOWS.c[name] for name in _REVISED),
    ).where(_THIS_WINDOW),
)
_REVISE = (
    update(WINDOWS)
    .where(_THIS_WINDOW)
    .values(revision=WINDOWS.c.revision + 1, **{name: bindparam(f"b_{name}") for name in _REVISED})
)
_EXPIRE = (
    update(SERIES)
    .where(SERIES.c.name == bindparam("b_name"), SERIES.c.partition_id == bindparam("b_partition_id"))
    .values(live=False, window_state=None, detector_state=None, alert_state=None, rollout_state=None)
)
_COMPARE = (
    update(DEPLOYMENTS)
    .where(DEPLOYMENTS.c.series == bindparam("b_series"))
    .where(DEPLOYMENTS.c.model_version == bindparam("b_model_version"))
    .where(DEPLOYMENTS.c.at_ms == bindparam("b_at_ms"))
    .values(
        **{
            name: bindparam(f"b_{name}")
            for name in ("verdict", "basis", "compared_at_ms", "requests", "summary", "differences")
        }
    )
)
_NO_WINDOWS: Row = {
    "windows": 0, "last_window_start_ms": None, "last_score": None, "last_is_anomalous": None,
}  # fmt: skip
_NEWEST = (
    update(SERIES)
    .where(SERIES.c.id == bindparam("b_id"))
    .values(
        {name: bindparam(f"b_{name}") for name in _NO_WINDOWS}
        | {"windows": SERIES.c.windows + bindparam("b_windows")}
    )
)
_SKETCH_COLUMNS = ("series_id", "window_start_ms", "partition_id", "sketch")
_SERIES_COLUMNS = ("model", "endpoint", "partition_id", "last_record_ms", "live")
_STATES = ("window_state", "detector_state", "alert_state", "rollout_state")


class ResultWriter:
    """Writes the rows of commits; remembers the ids of series that are known to be committed."""

    def __init__(self, dialect: str) -> None:
        self._ids: dict[tuple[int, str], int] = {}
        self._upsert_series = upsert(
            schema.SeriesTable,
            dialect,
            ["name"],
            {name: _excluded(name) for name in (*_SERIES_COLUMNS, *_STATES)}
            | {name: _excluded_if_any(name) for name in _NO_WINDOWS}
            | {"windows": lambda existing, excluded: existing["windows"] + excluded["windows"]},
        )
        self._insert_deployments = insert_missing(schema.DeploymentTable, dialect)
        self._upsert_alerts = upsert(schema.AlertTable, dialect, ["alert_id"])
        self._upsert_sketches = upsert(schema.WindowSketchTable, dialect, ["series_id", "window_start_ms"])

    def remember(self, partition_id: int, series_ids: dict[str, int]) -> None:
        """Ids that a committed transaction has shown; not before, for a rollback takes them back."""
        if len(self._ids) + len(series_ids) > MAX_CACHED_IDS:
            self._ids.clear()
        self._ids.update(((partition_id, name), found) for name, found in series_ids.items())

    def write(
        self,
        connection: Connection,
        commit: Commit,
        partition_id: int,
        topic_id: str,
        *,
        sketches_from_ms: int,
    ) -> dict[str, int]:
        """All rows of `commit` except the partition's own and the incidents; returns ids of its series.

        Sketches of windows that start before `sketches_from_ms` are left out: nothing amends them any more.
        """
        ids = self._write_series(connection, commit, partition_id)
        owners = [ids[series] for batch in commit.windows for series in batch.series]
        insert_many(connection, WINDOWS, WINDOW_COLUMNS, window_rows(commit.windows, owners))
        self._revise(connection, commit, ids)
        self._write_sketches(connection, commit, partition_id, ids, sketches_from_ms)
        if commit.rejected_rows:
            rejects = [
                {
                    "partition_id": partition_id,
                    "topic_id": topic_id,
                    "offset": reject.offset,
                    "reason": text.clean(reject.reason, REASON_LENGTH),
                    "sample": text.clean(reject.sample, SAMPLE_LENGTH),
                    "received_at_ms": reject.received_at_ms,
                }
                for reject in commit.rejected_rows
            ]
            connection.execute(insert(table(schema.RejectTable)), rejects)
        self._write_deployments(connection, commit)
        self._write_transitions(connection, commit)
        return ids

    def _write_series(self, connection: Connection, commit: Commit, partition_id: int) -> dict[str, int]:
        names = {series for batch in commit.windows for series in batch.series}
        names.update(window.series for window in commit.revisions)
        names.update(row.series for row in [*commit.series, *commit.parked])
        keys = {name: series_key(name) for name in names}
        newest = _newest(commit.windows)
        known = {n: self._ids[partition_id, n] for n in names if (partition_id, n) in self._ids}
        unknown = sorted(names - set(known))
        if unknown:
            self._refuse_second_partition(connection, (keys[name] for name in unknown), partition_id)
        rows = {
            row.series: {
                "name": keys[row.series],
                "model": series_key(row.model),
                "endpoint": series_key(row.endpoint),
                "partition_id": partition_id,
                "first_seen_ms": row.first_seen_ms,
                "last_record_ms": row.last_record_ms,
                "live": live,
                **{state: getattr(row, state) for state in _STATES},
                **newest.get(row.series, _NO_WINDOWS),
            }
            for live, found in ((True, commit.series), (False, commit.parked))
            for row in found
        }
        stray = [name for name in unknown if name not in rows]
        stored = self._select_ids(connection, [keys[name] for name in stray]) if stray else {}
        for name in stray:  # closed its only windows and expired, all within this commit
            if keys[name] not in stored:
                rows[name] = _expired_row(keys[name], partition_id, commit) | newest.get(name, _NO_WINDOWS)
        if rows:
            execute_many(connection, self._upsert_series, [rows[name] for name in sorted(rows)])
        if commit.expired_series:
            expired = [
                {"b_name": series_key(name), "b_partition_id": partition_id} for name in commit.expired_series
            ]
            connection.execute(_EXPIRE, expired)
        if unknown:
            ids = self._select_ids(connection, [keys[name] for name in unknown])
            known.update((name, ids[keys[name]]) for name in unknown)
        ended = [{"b_id": known[name], **_bound(row)} for name, row in newest.items() if name not in rows]
        execute_many(connection, _NEWEST, ended)
        return known

    def _select_ids(self, connection: Connection, keys: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for start in range(0, len(keys), MAX_IDS):
            statement = select(SERIES.c.name, SERIES.c.id).where(
                SERIES.c.name.in_(keys[start : start + MAX_IDS])
            )
            found.update((row.name, row.id) for row in connection.execute(statement))
        return found

    def _refuse_second_partition(
        self, connection: Connection, keys: Iterable[str], partition_id: int
    ) -> None:
        names = list(keys)
        for start in range(0, len(names), MAX_IDS):
            other = connection.execute(
                select(SERIES.c.name, SERIES.c.partition_id)
                .where(SERIES.c.name.in_(names[start : start + MAX_IDS]), SERIES.c.live.is_(True))
                .where(SERIES.c.partition_id != partition_id)
                .limit(1)
            ).first()
            if other is not None:
                raise SeriesConflict(
                    f"series {other.name!r} arrives in two partitions; key the producer by series so that "
                    "one partition holds all of it"
                )

    def _revise(self, connection: Connection, commit: Commit, ids: dict[str, int]) -> None:
        """Keep the previous values, then amend; a window amended twice in one commit takes two rounds."""
        waiting: list[RevisedWindow] = commit.revisions
        while waiting:
            round_: dict[tuple[str, int], RevisedWindow] = {}
            later = []
            for window in waiting:
                place = (window.series, window.window_start_ms)
                if place in round_:
                    later.append(window)
                else:
                    round_[place] = window
            rows = [revised_row(window, ids[window.series]) for window in round_.values()]
            kept = [
                {
                    "b_series_id": row["b_series_id"],
                    "b_window_start_ms": row["b_window_start_ms"],
                    "b_replaced_at_ms": commit.committed_at_ms,
                }
                for row in rows
            ]
            connection.execute(_KEEP_REVISION, kept)
            connection.execute(_REVISE, rows)
            waiting = later

    def _write_sketches(
        self, connection: Connection, commit: Commit, partition_id: int, ids: dict[str, int], from_ms: int
    ) -> None:
        new = [
            (ids[series], batch.window_start_ms, partition_id, sketch)
            for batch in commit.windows
            if batch.window_start_ms >= from_ms
            for series, sketch in zip(batch.series, batch.sketches, strict=True)
            if sketch is not None
        ]
        newest = {
            (ids[w.series], w.window_start_ms): (partition_id, w.sketch)
            for w in commit.revisions
            if w.sketch is not None and w.window_start_ms >= from_ms
        }
        insert_many(connection, SKETCHES, _SKETCH_COLUMNS, new)
        amended = [dict(zip(_SKETCH_COLUMNS, (*place, *held), strict=True)) for place, held in newest.items()]
        execute_many(connection, self._upsert_sketches, amended)

    def _write_deployments(self, connection: Connection, commit: Commit) -> None:
        """New model versions, then what was found about them and about earlier ones."""
        marks = {
            (series_key(d.series), text.key(d.model_version, schema.NAME_LENGTH), d.at_ms): d.previous_version
            for d in commit.deployments
        }
        if marks:
            columns = ("series", "model_version", "at_ms")
            deployed = [
                {**dict(zip(columns, mark, strict=True)), "previous_version": text.clean(marks[mark], 512)}
                for mark in sorted(marks)
            ]
            connection.execute(self._insert_deployments, deployed)
        compared = [
            {
                "b_series": series_key(row.series),
                "b_model_version": text.key(row.model_version, schema.NAME_LENGTH),
                "b_at_ms": row.at_ms,
                "b_verdict": row.verdict,
                "b_basis": row.basis,
                "b_compared_at_ms": row.compared_at_ms,
                "b_requests": row.requests,
                "b_summary": text.clean(row.summary, SAMPLE_LENGTH),
                "b_differences": text.to_json(row.differences),
            }
            for row in commit.comparisons
        ]
        if compared:
            connection.execute(_COMPARE, compared)

    def _write_transitions(self, connection: Connection, commit: Commit) -> None:
        alerts = [*(t.alert for t in commit.transitions), *commit.alerts]
        if alerts:
            newest = {alert.alert_id: alert_row(alert) for alert in alerts}
            connection.execute(self._upsert_alerts, list(newest.values()))
        if not commit.transitions:
            return
        rows = [
            {
                "at_ms": t.at_ms,
                "series": series_key(t.alert.series),
                "kind": t.kind,
                "alert_id": t.alert.alert_id,
                "alert": encode_alert(t.alert),
                "folded": False,
            }
            for t in commit.transitions
        ]
        connection.execute(insert(table(schema.TransitionTable)), rows)


def _excluded(name: str) -> Any:
    return lambda existing, excluded: excluded[name]


def _excluded_if_any(name: str) -> Any:
    return lambda existing, excluded: func.coalesce(excluded[name], existing[name])


def _expired_row(name: str, partition_id: int, commit: Commit) -> Row:
    starts = [batch.window_start_ms for batch in commit.windows]
    model, _, endpoint = name.partition("/")
    return {
        "name": name,
        "model": model,
        "endpoint": endpoint,
        "partition_id": partition_id,
        "first_seen_ms": min(starts, default=commit.committed_at_ms),
        "last_record_ms": max(starts, default=commit.committed_at_ms),
        "live": False,
        **dict.fromkeys(_STATES),
    }


def _newest(batches: Sequence[ScoredWindows]) -> dict[str, Row]:
    """By series: how many windows more it has, and what the newest of them says."""
    found: dict[str, Row] = {}
    for batch in sorted(batches, key=lambda each: each.window_start_ms):
        told = zip(batch.series, batch.score.tolist(), batch.is_anomalous.tolist(), strict=True)
        for series, score, anomalous in told:
            before = found[series]["windows"] if series in found else 0
            values = (before + 1, batch.window_start_ms, score, anomalous)
            found[series] = dict(zip(_NO_WINDOWS, values, strict=True))
    return found


def _bound(row: Row) -> Row:
    return {f"b_{name}": value for name, value in row.items()}
