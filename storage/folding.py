"""From alert transitions to incidents, inside the transaction of a commit, whoever commits.

Transitions of all partitions are folded in the order (at_ms, series, kind), and only up to the event
time that every partition has passed; so the incidents depend neither on which partition commits first nor
on how commits are cut. `fold` is called once per event time, with a view that holds what it decided before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, func, insert, or_, select, update

from storage import schema
from storage.names import GOING_ON
from storage.rows import (
    decode_alert,
    event_row,
    incident_row,
    outbox_row,
    series_key,
    to_incident,
    to_silence,
    upsert,
)
from storage.schema import table
from storage.types import (
    AlertTransition,
    Fold,
    IncidentChanges,
    IncidentRow,
    IncidentView,
    SilenceRow,
)

PARTITIONS, TRANSITIONS = table(schema.PartitionTable), table(schema.TransitionTable)
INCIDENTS, LINKS = table(schema.IncidentTable), table(schema.IncidentAlertTable)
SERIES = table(schema.SeriesTable)
CURSOR, SILENCES = table(schema.CursorTable), table(schema.SilenceTable)
MAX_IDS = 500  # in one IN (...)
NO_LIMIT_MS = (1 << 62) - 1


def lock_incidents(connection: Connection) -> None:
    """Whoever changes incidents holds the cursor's row until the end of its transaction."""
    connection.execute(select(CURSOR.c.id).where(CURSOR.c.id == 1).with_for_update())


@dataclass(frozen=True, slots=True)
class Passed:
    """Event times up to which no partition will bring transitions any more."""

    surely_ms: int  # those that are finished count as well
    over_resting_ms: int  # unless one that is finished gets records after all


def passed(connection: Connection, stale_before_ms: int | None, allowed_lateness_ms: int) -> Passed:
    """A partition that was last seen before `stale_before_ms` and is not finished holds nobody back; one
    without a watermark has not begun, and holds everything back.
    """
    waits: ColumnElement[bool] = PARTITIONS.c.finished.is_(False)
    if stale_before_ms is not None:
        waits &= PARTITIONS.c.updated_at_ms >= stale_before_ms
    reached = func.coalesce(PARTITIONS.c.watermark_ms, -NO_LIMIT_MS // 2)
    found = connection.execute(
        select(func.min(case((waits, reached))), func.min(case((PARTITIONS.c.finished, reached))))
    ).one()
    slowest_ms, resting_ms = (
        NO_LIMIT_MS if each is None else int(each) - allowed_lateness_ms for each in found
    )
    return Passed(min(slowest_ms, resting_ms), slowest_ms)


def newest_pending_ms(connection: Connection) -> int | None:
    """When the newest transition was that has not been folded."""
    newest = select(func.max(TRANSITIONS.c.at_ms)).where(TRANSITIONS.c.folded.is_(False))
    found: int | None = connection.execute(newest).scalar_one()
    return found


def fold_pending(connection: Connection, fold: Fold, up_to_ms: int, reopen_ms: int) -> int:
    """Fold every pending transition with at_ms <= up_to_ms; returns how many.

    Errors of `fold` pass through and undo the whole transaction.
    """
    pending = TRANSITIONS.c.folded.is_(False) & (TRANSITIONS.c.at_ms <= up_to_ms)
    if connection.execute(select(TRANSITIONS.c.id).where(pending).limit(1)).first() is None:
        return 0
    lock_incidents(connection)
    found = connection.execute(
        select(TRANSITIONS.c.id, TRANSITIONS.c.at_ms, TRANSITIONS.c.kind, TRANSITIONS.c.alert).where(pending)
    ).all()
    rows = [(row.id, AlertTransition(row.at_ms, row.kind, decode_alert(row.alert))) for row in found]
    if not rows:  # another owner has folded them while we waited for the lock
        return 0
    # sorted here, not by the database: PostgreSQL's text order depends on the locale
    rows.sort(key=lambda r: (r[1].at_ms, r[1].alert.series, r[1].kind, r[0]))
    stage = _Stage(connection, [transition for _, transition in rows], reopen_ms)
    for at_ms, group in groupby((transition for _, transition in rows), key=lambda t: t.at_ms):
        stage.apply(fold(stage.view(at_ms), list(group)))
    stage.write()
    connection.execute(
        update(TRANSITIONS).where(TRANSITIONS.c.id == bindparam("b_id")).values(folded=True),
        [{"b_id": row_id} for row_id, _ in rows],
    )
    connection.execute(update(CURSOR).where(CURSOR.c.id == 1).values(folded_to_ms=rows[-1][1].at_ms))
    return len(rows)


class _Stage:
    """The incidents a fold may look at, kept up to date with its decisions until they are written."""

    def __init__(self, connection: Connection, transitions: list[AlertTransition], reopen_ms: int) -> None:
        self.connection = connection
        self.reopen_ms = reopen_ms
        first_ms, last_ms = transitions[0].at_ms, transitions[-1].at_ms
        recent = select(INCIDENTS).where(
            or_(
                INCIDENTS.c.status.in_(GOING_ON),
                and_(INCIDENTS.c.status == "resolved", INCIDENTS.c.resolved_at_ms >= first_ms - reopen_ms),
            )
        )
        self.incidents = {i.incident_id: i for i in self._incidents(recent)}
        alert_ids = sorted({t.alert.alert_id for t in transitions})
        self.links = self._links(LINKS.c.alert_id, alert_ids)
        self.in_play = set(self.links.values())  # of alerts at hand: in view however old they are
        missing = sorted(self.in_play - set(self.incidents))
        for part in _parts(missing):
            older = select(INCIDENTS).where(INCIDENTS.c.incident_id.in_(part))
            self.incidents.update((i.incident_id, i) for i in self._incidents(older))
        self.links.update(self._links(LINKS.c.incident_id, sorted(self.incidents)))
        silences = select(SILENCES).where(
            SILENCES.c.starts_at_ms <= last_ms, SILENCES.c.ends_at_ms > first_ms
        )
        self.silences: list[SilenceRow] = [
            to_silence(row) for row in connection.execute(silences.order_by(SILENCES.c.silence_id)).mappings()
        ]
        self.partitions = self._partitions(sorted({t.alert.series for t in transitions}))
        self.changes: list[IncidentChanges] = []

    def _incidents(self, statement: Any) -> Iterable[IncidentRow]:
        return [to_incident(row) for row in self.connection.execute(statement).mappings()]

    def _links(self, column: Any, ids: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in _parts(ids):
            statement = select(LINKS.c.alert_id, LINKS.c.incident_id).where(column.in_(part))
            found.update((row.alert_id, row.incident_id) for row in self.connection.execute(statement))
        return found

    def _partitions(self, names: list[str]) -> dict[str, str]:
        """Where the series of these transitions come from; names that are no series have no place."""
        found: dict[str, str] = {}
        keys = {series_key(name): name for name in names}
        for part in _parts(list(keys)):
            statement = (
                select(SERIES.c.name, PARTITIONS.c.topic, PARTITIONS.c.partition)
                .join(PARTITIONS, PARTITIONS.c.id == SERIES.c.partition_id)
                .where(SERIES.c.name.in_(part))
            )
            rows = self.connection.execute(statement)
            found.update((keys[row.name], f"{row.topic}/{row.partition}") for row in rows)
        return found

    def view(self, at_ms: int) -> IncidentView:
        """What counts at event time `at_ms`, in an order that depends on nothing else."""
        visible = {
            incident_id: incident
            for incident_id, incident in sorted(self.incidents.items())
            if incident.status != "resolved"
            or incident_id in self.in_play
            or (incident.resolved_at_ms or 0) >= at_ms - self.reopen_ms
        }
        return IncidentView(
            incidents=sorted(visible.values(), key=lambda i: (i.opened_at_ms, i.incident_id)),
            alert_incident={a: i for a, i in sorted(self.links.items()) if i in visible},
            silences=[s for s in self.silences if s.starts_at_ms <= at_ms < s.ends_at_ms],
            partitions=self.partitions,
        )

    def apply(self, changes: IncidentChanges) -> None:
        self.incidents.update((incident.incident_id, incident) for incident in changes.incidents)
        self.links.update(changes.links)
        self.changes.append(changes)

    def write(self) -> None:
        touched = sorted({i.incident_id for changes in self.changes for i in changes.incidents})
        write_changes(
            self.connection,
            IncidentChanges(
                incidents=[self.incidents[incident_id] for incident_id in touched],
                events=[event for changes in self.changes for event in changes.events],
                links=[link for changes in self.changes for link in changes.links],
                outbox=[row for changes in self.changes for row in changes.outbox],
            ),
        )


def write_changes(connection: Connection, changes: IncidentChanges) -> None:
    """Rows of incidents, events, links and outbox; a delivery_id that exists already fails loudly."""
    dialect = connection.dialect.name
    if changes.incidents:
        connection.execute(
            upsert(schema.IncidentTable, dialect, ["incident_id"]),
            [incident_row(i) for i in changes.incidents],
        )
    if changes.events:
        connection.execute(insert(table(schema.IncidentEventTable)), [event_row(e) for e in changes.events])
    if changes.links:
        connection.execute(
            upsert(schema.IncidentAlertTable, dialect, ["alert_id"]),
            [{"alert_id": a, "incident_id": i} for a, i in dict(changes.links).items()],
        )
    if changes.outbox:
        connection.execute(insert(table(schema.DeliveryTable)), [outbox_row(row) for row in changes.outbox])


def _parts(ids: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(ids), MAX_IDS):
        yield ids[start : start + MAX_IDS]
