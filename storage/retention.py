"""Deletes what is older than the settings keep, in small transactions so that no commit waits long."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, Table, delete, func, select, update

from storage import schema
from storage.access_schema import HttpSessionTable
from storage.engine import reading
from storage.names import GOING_ON
from storage.rollup_schema import WindowHourTable
from storage.schema import table

SERIES, WINDOWS = table(schema.SeriesTable), table(schema.WindowTable)
REVISIONS, SKETCHES = table(schema.WindowRevisionTable), table(schema.WindowSketchTable)
REJECTS, DELIVERIES = table(schema.RejectTable), table(schema.DeliveryTable)
TRANSITIONS, DEPLOYMENTS = table(schema.TransitionTable), table(schema.DeploymentTable)
SESSIONS, INCIDENTS = table(HttpSessionTable), table(schema.IncidentTable)
PARTITIONS, HOURS = table(schema.PartitionTable), table(WindowHourTable)
DAY_MS = 86_400_000
CHUNK_ROWS, CHUNK_SERIES = 2_000, 50


def purge(
    engine: Engine,
    *,
    now_ms: int,
    keep_windows_ms: int,
    keep_rejected_ms: int,
    keep_deliveries_ms: int = 90 * DAY_MS,
    keep_parked_ms: int = 90 * DAY_MS,
    keep_hours_ms: int = 730 * DAY_MS,
) -> dict[str, int]:
    """Returns how many rows of each kind were deleted.

    The age of windows, their hours, steps of alerts and deployments counts in event time, from the newest
    window: a log of last year stays readable after its replay. Rejected records, finished deliveries of
    resolved incidents and ended sessions count in wall time: what an open incident has been told stays until
    it ends. States of series that made room for others (parked) go when the watermark of their partition is
    `keep_parked_ms` ahead of their newest record; nobody would ask for them any more. Silences, incidents
    with their events, alerts, labels, notes, actions of people and models are kept for good.
    """
    with reading(engine) as connection:
        newest_ms = connection.execute(select(func.max(SERIES.c.last_window_start_ms))).scalar()
        series_ids = list(connection.execute(select(SERIES.c.id).order_by(SERIES.c.id)).scalars())
    done = dict.fromkeys(("windows", "window_revisions", "window_sketches", "window_hours"), 0)
    if newest_ms is not None:
        before_ms = min(newest_ms, now_ms) - keep_windows_ms
        hours_before_ms = min(newest_ms, now_ms) - keep_hours_ms
        for target, name, until_ms in (
            (WINDOWS, "windows", before_ms),
            (REVISIONS, "window_revisions", before_ms),
            (SKETCHES, "window_sketches", before_ms),
            (HOURS, "window_hours", hours_before_ms),
        ):
            for start in range(0, len(series_ids), CHUNK_SERIES):
                part = series_ids[start : start + CHUNK_SERIES]
                done[name] += _purge_series(engine, target, part, until_ms)
        steps = TRANSITIONS.c.folded.is_(True) & (TRANSITIONS.c.at_ms < before_ms)
        done["alert_transitions"] = _purge_where(engine, TRANSITIONS, TRANSITIONS.c.id, steps)
        marks = DEPLOYMENTS.c.at_ms < before_ms
        done["deployments"] = _purge_where(engine, DEPLOYMENTS, DEPLOYMENTS.c.id, marks)
    old_rejects = REJECTS.c.received_at_ms < now_ms - keep_rejected_ms
    done["rejected"] = _purge_where(engine, REJECTS, REJECTS.c.id, old_rejects)
    going_on = select(INCIDENTS.c.incident_id).where(INCIDENTS.c.status.in_(GOING_ON))
    old_deliveries = DELIVERIES.c.finished_at_ms < now_ms - keep_deliveries_ms
    old_deliveries &= DELIVERIES.c.incident_id.not_in(going_on)
    done["deliveries"] = _purge_where(engine, DELIVERIES, DELIVERIES.c.delivery_id, old_deliveries)
    ended = SESSIONS.c.expires_at_ms < now_ms
    done["sessions"] = _purge_where(engine, SESSIONS, SESSIONS.c.hash, ended)
    done["parked_states"] = _forget_parked(engine, keep_parked_ms)
    return done


def _forget_parked(engine: Engine, keep_ms: int) -> int:
    """Empty the states of series without a place that have been away for longer than `keep_ms`."""
    mark_ms = select(PARTITIONS.c.watermark_ms).where(PARTITIONS.c.id == SERIES.c.partition_id)
    old = (
        SERIES.c.live.is_(False)
        & SERIES.c.detector_state.is_not(None)
        & (SERIES.c.last_record_ms < mark_ms.scalar_subquery() - keep_ms)
    )
    total = 0
    while True:
        with engine.begin() as connection:
            some = select(SERIES.c.id).where(old).limit(CHUNK_ROWS)
            emptied = {"window_state": None, "detector_state": None, "alert_state": None}
            done = connection.execute(
                update(SERIES).where(SERIES.c.id.in_(some), SERIES.c.live.is_(False)).values(emptied)
            ).rowcount
        total += done
        if done < CHUNK_ROWS:
            return total


def _purge_series(engine: Engine, target: Table, series_ids: list[int], before_ms: int) -> int:
    """Delete windows of these series that start before `before_ms`, CHUNK_ROWS per transaction.

    Series by series, the oldest first, so that every step is a seek in the primary key however much is old.
    """
    any_old = target.c.series_id.in_(series_ids) & (target.c.window_start_ms < before_ms)
    with reading(engine) as connection:
        waiting = list(connection.execute(select(target.c.series_id).where(any_old).distinct()).scalars())
    total = 0
    while waiting:
        left = CHUNK_ROWS
        with engine.begin() as connection:
            while waiting and left > 0:
                old = (target.c.series_id == waiting[-1]) & (target.c.window_start_ms < before_ms)
                starts = select(target.c.window_start_ms).where(old).order_by(target.c.window_start_ms)
                last_ms = connection.execute(starts.offset(left - 1).limit(1)).scalar()
                part = old if last_ms is None else old & (target.c.window_start_ms <= last_ms)
                deleted = connection.execute(delete(target).where(part)).rowcount
                total, left = total + deleted, left - max(deleted, 1)
                if last_ms is None:
                    waiting.pop()
    return total


def _purge_where(engine: Engine, target: Table, key: Any, condition: Any) -> int:
    total = 0
    while True:
        with engine.begin() as connection:
            some = select(key).where(condition).limit(CHUNK_ROWS)
            deleted = connection.execute(delete(target).where(key.in_(some))).rowcount
        total += deleted
        if deleted < CHUNK_ROWS:
            return total
