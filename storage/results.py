"""The rows of one commit: series, windows, sketches, revisions, rejects, alerts and their transitions."""

from __future__ import annotations

from sqlalchemy import BigInteger, Connection, bindparam, insert, select, update

from storage import schema, text
from storage.bulk import execute_many, insert_many
from storage.rows import (
    WINDOW_COLUMNS,
    alert_row,
    encode_alert,
    insert_missing,
    revised_row,
    series_key,
    upsert,
    window_rows,
)
from storage.schema import table
from storage.series_rows import SeriesWriter
from storage.types import FEATURE_COLUMNS, Commit, RevisedWindow

WINDOWS = table(schema.WindowTable)
DEPLOYMENTS = table(schema.DeploymentTable)
REVISIONS, SKETCHES = table(schema.WindowRevisionTable), table(schema.WindowSketchTable)
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
_SKETCH_COLUMNS = ("series_id", "window_start_ms", "partition_id", "sketch")


class ResultWriter:
    """Writes the rows of commits."""

    def __init__(self, dialect: str) -> None:
        self._series = SeriesWriter(dialect)
        self._insert_deployments = insert_missing(schema.DeploymentTable, dialect)
        self._upsert_alerts = upsert(schema.AlertTable, dialect, ["alert_id"])
        self._upsert_sketches = upsert(schema.WindowSketchTable, dialect, ["series_id", "window_start_ms"])

    def remember(self, partition_id: int, commit: Commit, series_ids: dict[str, int]) -> None:
        """Ids that a committed transaction has shown."""
        self._series.remember(partition_id, commit, series_ids)

    def forget(self, partition_id: int) -> None:
        """To be called when the partition is claimed."""
        self._series.forget(partition_id)

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
        ids = self._series.write(connection, commit, partition_id)
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
        amended = {
            (ids[w.series], w.window_start_ms): (partition_id, w.sketch)
            for w in commit.revisions
            if w.sketch is not None and w.window_start_ms >= from_ms
        }
        insert_many(connection, SKETCHES, _SKETCH_COLUMNS, new)
        rows = [(*place, *held) for place, held in amended.items()]
        execute_many(connection, self._upsert_sketches, _SKETCH_COLUMNS, rows)

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
