"""What people do to incidents: each action is one transaction that leaves an event with who, when and why."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from storage import folding, schema, text
from storage.actions import Action, Actor, record
from storage.rows import to_incident
from storage.schema import table
from storage.types import (
    IncidentChanges,
    IncidentEventRow,
    IncidentRow,
    OutboxRow,
    SilenceRow,
    UnknownIncident,
)

INCIDENTS, SILENCES = table(schema.IncidentTable), table(schema.SilenceTable)
MAX_NOTE = 8_000


def _nobody(incident: IncidentRow, event: IncidentEventRow) -> list[OutboxRow]:
    return []


def _via(token: str | None) -> dict[str, Any]:
    """Which token spoke where the name of a person is only what the request said."""
    return {} if token is None else {"via": token}


@dataclass(frozen=True, slots=True)
class People:
    """Actions of people; `notify` says which channels hear of one. Times are wall time.

    Every method raises UnknownIncident for an id that does not exist, and returns the incident after it.
    Waits for a fold in progress, so that a person and the pipeline never overwrite each other.
    """

    engine: Engine
    notify: Callable[[IncidentRow, IncidentEventRow], list[OutboxRow]] = _nobody

    def acknowledge(
        self, incident_id: str, *, by: str, now_ms: int, reason: str = "", via: str | None = None
    ) -> IncidentRow:
        """Somebody looks after it, or has seen it once it was over: then it stays resolved.

        Changes nothing when it is acknowledged already, before or after its end.
        """

        def seen(incident: IncidentRow) -> IncidentRow | None:
            if incident.acknowledged_at_ms is not None:
                return None
            status = "acknowledged" if incident.status == "open" else incident.status
            return dataclasses.replace(incident, status=status, acknowledged_at_ms=now_ms)

        return self._change(incident_id, "acknowledged", by, now_ms, reason, seen, _via(via))

    def resolve(
        self, incident_id: str, *, by: str, now_ms: int, reason: str = "", via: str | None = None
    ) -> IncidentRow:
        """Over, by a person's word; changes nothing when it is resolved already.

        The end is put in event time, at the newest firing but not before the opening, so that reopening
        and replays see one clock.
        """
        return self._change(
            incident_id,
            "resolved",
            by,
            now_ms,
            reason,
            lambda i: (
                dataclasses.replace(
                    i,
                    status="resolved",
                    resolution="by_person",
                    resolved_at_ms=max(i.last_fired_at_ms, i.opened_at_ms),
                    firing=[],
                )
                if i.status != "resolved"
                else None
            ),
            _via(via),
        )

    def reopen(
        self, incident_id: str, *, by: str, now_ms: int, reason: str = "", via: str | None = None
    ) -> IncidentRow:
        """Not over after all; changes nothing when it is not resolved.

        It stays open until a person resolves it, or until what joins it has ended.
        """
        return self._change(
            incident_id,
            "reopened",
            by,
            now_ms,
            reason,
            lambda i: (
                dataclasses.replace(
                    i, status="open", resolution=None, resolved_at_ms=None, acknowledged_at_ms=None
                )
                if i.status == "resolved"
                else None
            ),
            _via(via),
        )

    def label(
        self,
        incident_id: str,
        label: str,
        *,
        by: str,
        now_ms: int,
        comment: str = "",
        via: str | None = None,
    ) -> IncidentRow:
        """Say what it was ("true_positive", "false_positive", or a word of one's own); the newest counts."""
        row = {
            "label": text.clean(label, 200),
            "author": text.clean(by, 200),
            "comment": text.clean(comment, MAX_NOTE),
        }

        def write(connection: Connection) -> None:
            values = {"incident_id": incident_id, "at_ms": now_ms, **row}
            connection.execute(insert(table(schema.IncidentLabelTable)), values)

        return self._remark(
            incident_id, "labelled", by, now_ms, comment, {"label": row["label"], **_via(via)}, write
        )

    def note(
        self, incident_id: str, note: str, *, by: str, now_ms: int, via: str | None = None
    ) -> IncidentRow:
        """Something worth knowing; the newest revision's event carries it as its reason."""
        row = {"note": text.clean(note, MAX_NOTE), "author": text.clean(by, 200)}

        def write(connection: Connection) -> None:
            values = {"incident_id": incident_id, "at_ms": now_ms, **row}
            connection.execute(insert(table(schema.IncidentNoteTable)), values)

        return self._remark(incident_id, "noted", by, now_ms, row["note"], _via(via), write)

    def silence(
        self,
        matchers: dict[str, str],
        *,
        starts_at_ms: int,
        ends_at_ms: int,
        by: str,
        now_ms: int,
        comment: str = "",
        recurrence: dict[str, Any] | None = None,
        via: str | None = None,
    ) -> SilenceRow:
        """Keep notifications of matching alerts quiet in [starts_at_ms, ends_at_ms), event time.

        With a `recurrence` (checked by monitor.recurrence) only in its windows between these two. Raises
        ValueError without a matcher or for an end that is not behind the start.
        """
        if not matchers or ends_at_ms <= starts_at_ms:
            raise ValueError("a silence needs a matcher, and an end behind its start")
        silence = SilenceRow(
            silence_id=str(uuid.uuid4()),
            matchers={text.clean(k, 64): text.clean(v, 512) for k, v in matchers.items()},
            starts_at_ms=starts_at_ms,
            ends_at_ms=ends_at_ms,
            created_by=text.clean(by, 200),
            comment=text.clean(comment, MAX_NOTE),
            recurrence=recurrence,
        )
        values = {
            **dataclasses.asdict(silence),
            "matchers": text.to_json(silence.matchers),
            "recurrence": None if recurrence is None else text.to_json(recurrence),
            "created_at_ms": now_ms,
        }
        actor = Actor(by, now_ms, comment, via)
        with self.engine.begin() as connection:
            folding.lock_incidents(connection)
            connection.execute(insert(SILENCES), values)
            detail = {"matchers": silence.matchers, "ends_at_ms": ends_at_ms, "recurrence": recurrence}
            record(connection, Action("silence.created", silence.silence_id, actor, detail))
        return silence

    def end_silence(self, silence_id: str, at_ms: int, actor: Actor | None = None) -> bool:
        """Let a silence end at `at_ms`; False when it is unknown or ends earlier anyway."""
        with self.engine.begin() as connection:
            folding.lock_incidents(connection)
            done = connection.execute(
                update(SILENCES)
                .where(SILENCES.c.silence_id == silence_id, SILENCES.c.ends_at_ms > at_ms)
                .values(ends_at_ms=at_ms)
            )
            if done.rowcount == 1 and actor is not None:
                record(connection, Action("silence.ended", silence_id, actor))
            return done.rowcount == 1

    def _remark(
        self,
        incident_id: str,
        kind: str,
        by: str,
        now_ms: int,
        reason: str,
        detail: dict[str, Any],
        write: Callable[[Connection], None],
    ) -> IncidentRow:
        return self._change(incident_id, kind, by, now_ms, reason, lambda i: i, detail, write)

    def _change(
        self,
        incident_id: str,
        kind: str,
        by: str,
        now_ms: int,
        reason: str,
        decide: Callable[[IncidentRow], IncidentRow | None],
        detail: dict[str, Any] | None = None,
        write: Callable[[Connection], None] | None = None,
    ) -> IncidentRow:
        with self.engine.begin() as connection:
            folding.lock_incidents(connection)
            row = (
                connection.execute(select(INCIDENTS).where(INCIDENTS.c.incident_id == incident_id))
                .mappings()
                .first()
            )
            if row is None:
                raise UnknownIncident(f"no incident {incident_id!r}")
            before = to_incident(row)
            after = decide(before)
            if after is None:
                return before
            after = dataclasses.replace(after, revision=before.revision + 1)
            event = IncidentEventRow(
                incident_id,
                after.revision,
                now_ms,
                kind,
                text.clean(by, 200),
                text.clean(reason),
                detail or {},
            )
            outbox = self.notify(after, event)
            folding.write_changes(connection, IncidentChanges([after], [event], [], outbox))
            if write is not None:
                write(connection)
            return after
