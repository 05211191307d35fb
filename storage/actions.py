"""What people did to silences, models, deliveries and tokens, kept beside the change itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert

from storage import schema, text
from storage.access_schema import ActionTable

ACTIONS = schema.table(ActionTable)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, when (wall time) and why; `via` is the token where the name is only said."""

    name: str
    now_ms: int
    reason: str = ""
    via: str | None = None

    def detail(self, **more: Any) -> dict[str, Any]:
        return {**more, **({"via": self.via} if self.via is not None else {})}


@dataclass(frozen=True, slots=True)
class Action:
    action: str
    subject: str
    actor: Actor
    detail: dict[str, Any] = field(default_factory=dict)


def record(connection: Connection, action: Action) -> None:
    """A row in the transaction that makes the change."""
    row = {
        "at_ms": action.actor.now_ms,
        "actor": text.clean(action.actor.name, schema.NAME_LENGTH),
        "action": action.action,
        "subject": text.clean(action.subject, schema.NAME_LENGTH),
        "reason": text.clean(action.actor.reason),
        "detail": text.to_json(action.actor.detail(**action.detail)),
    }
    connection.execute(insert(ACTIONS), row)
