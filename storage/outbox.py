"""The outbox: notifications wait here until a channel has taken them, in order, at least once.

Inside one (incident, channel) a later one is handed out only when the earlier ones are delivered or given
up. A claim is a lease: where its holder dies, the notification is handed out again when the lease ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from storage import schema, text
from storage.actions import Action, Actor, record
from storage.engine import reading
from storage.rows import upsert
from storage.schema import table
from storage.types import ClaimedDelivery

DELIVERIES, DISABLED = table(schema.DeliveryTable), table(schema.ChannelTable)
INCIDENTS = table(schema.IncidentTable)
ERROR_LENGTH = 2_000
_earlier = DELIVERIES.alias("earlier")
_ACTIVE = DELIVERIES.c.status.in_(["pending", "claimed"])
_FIRST_IN_LINE = ~exists(
    select(_earlier.c.delivery_id).where(
        _earlier.c.incident_id == DELIVERIES.c.incident_id,
        _earlier.c.channel == DELIVERIES.c.channel,
        _earlier.c.status.in_(["pending", "claimed"]),
        or_(
            _earlier.c.sequence < DELIVERIES.c.sequence,
            and_(
                _earlier.c.sequence == DELIVERIES.c.sequence,
                _earlier.c.delivery_id < DELIVERIES.c.delivery_id,
            ),
        ),
    )
)
_DISABLED = (DELIVERIES.c.status == "pending") & DELIVERIES.c.channel.in_(select(DISABLED.c.channel))
_later = DELIVERIES.alias("later")
_NEWEST = ~exists(
    select(_later.c.delivery_id).where(
        _later.c.incident_id == DELIVERIES.c.incident_id,
        _later.c.channel == DELIVERIES.c.channel,
        _later.c.sequence > DELIVERIES.c.sequence,
    )
)
_TAKE = (
    update(DELIVERIES)
    .where(DELIVERIES.c.delivery_id == bindparam("b_delivery_id"))
    .values(
        status="claimed",
        lease_owner=bindparam("b_owner"),
        due_at_ms=bindparam("b_lease_until_ms"),
        attempts=DELIVERIES.c.attempts + bindparam("b_attempt", type_=Integer),
        first_attempt_at_ms=func.coalesce(DELIVERIES.c.first_attempt_at_ms, bindparam("b_now_ms")),
    )
)


class Outbox:
    """Statuses: pending -> claimed -> delivered | dead; claimed -> pending after a failed attempt.

    `delivered`, `failed` and `dead` return False, and change nothing, when the lease has passed to
    another owner meanwhile: that one's answer counts.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def claim(
        self, owner: str, now_ms: int, limit: int, lease_ms: int, *, exclude: Collection[str] = ()
    ) -> list[ClaimedDelivery]:
        """Up to `limit` notifications that are due, oldest first, leased until now_ms + lease_ms.

        Channels in `exclude` are left out: they have no room for more at the moment.
        """
        room = _ACTIVE & (DELIVERIES.c.due_at_ms <= now_ms) & DELIVERIES.c.channel.not_in(list(exclude))
        due = room & _FIRST_IN_LINE
        if not self._any(or_(due, _DISABLED)):
            return []
        with self.engine.begin() as connection:
            self._give_up_disabled(connection, now_ms)
            rows = connection.execute(
                select(DELIVERIES)
                .where(due)
                .order_by(DELIVERIES.c.due_at_ms, DELIVERIES.c.sequence, DELIVERIES.c.delivery_id)
                .limit(limit)
                .with_for_update(skip_locked=True, of=DELIVERIES)
            ).all()
            _lease(connection, rows, owner, now_ms, lease_ms)
        return [_claimed(row) for row in rows]

    def claim_resends(
        self, owner: str, now_ms: int, limit: int, lease_ms: int, *, exclude: Collection[str] = ()
    ) -> list[ClaimedDelivery]:
        """Delivered notifications that are due once more, leased like those of `claim`.

        Only the newest of an incident and channel, and only while the incident lasts. While one is on its
        way, what comes after it waits: an end never overtakes a repetition.
        """
        due = (DELIVERIES.c.status == "delivered") & (DELIVERIES.c.resend_at_ms <= now_ms)
        if not self._any(due):
            return []
        still_open = exists(
            select(INCIDENTS.c.incident_id).where(
                INCIDENTS.c.incident_id == DELIVERIES.c.incident_id, INCIDENTS.c.status != "resolved"
            )
        )
        with self.engine.begin() as connection:
            connection.execute(
                update(DELIVERIES).where(due, or_(~still_open, ~_NEWEST)).values(resend_at_ms=None)
            )
            rows = connection.execute(
                select(DELIVERIES)
                .where(
                    due,
                    DELIVERIES.c.channel.not_in(list(exclude)),
                    DELIVERIES.c.channel.not_in(select(DISABLED.c.channel)),
                )
                .order_by(DELIVERIES.c.resend_at_ms, DELIVERIES.c.delivery_id)
                .limit(limit)
                .with_for_update(skip_locked=True, of=DELIVERIES)
            ).all()
            _lease(connection, rows, owner, now_ms, lease_ms, again=True)
        return [_claimed(row) for row in rows]

    def delivered(
        self, delivery_id: str, owner: str, now_ms: int, *, resend_at_ms: int | None = None
    ) -> bool:
        """The channel has taken it; it is sent again from `resend_at_ms` on while its incident lasts."""
        values = {"status": "delivered", "delivered_at_ms": now_ms, "finished_at_ms": now_ms}
        return self._end_lease(
            delivery_id, owner, {**values, "last_error": None, "resend_at_ms": resend_at_ms}
        )

    def resent(self, delivery_id: str, owner: str, *, resend_at_ms: int, error: str | None) -> bool:
        """A delivered notification was sent again, in vain if there is an `error`; it stays delivered."""
        cleaned = None if error is None else text.clean(error, ERROR_LENGTH)
        values = {"status": "delivered", "resend_at_ms": resend_at_ms, "last_error": cleaned}
        return self._end_lease(delivery_id, owner, values)

    def failed(self, delivery_id: str, owner: str, *, retry_at_ms: int, error: str) -> bool:
        """The attempt failed; it is due again at `retry_at_ms`."""
        values = {
            "status": "pending",
            "due_at_ms": retry_at_ms,
            "last_error": text.clean(error, ERROR_LENGTH),
        }
        return self._end_lease(delivery_id, owner, values)

    def dead(self, delivery_id: str, owner: str, now_ms: int, error: str) -> bool:
        """Given up for good; what waits behind it may go."""
        values = {"status": "dead", "finished_at_ms": now_ms, "last_error": text.clean(error, ERROR_LENGTH)}
        return self._end_lease(delivery_id, owner, values)

    def disable_channel(self, channel: str, now_ms: int, reason: str) -> int:
        """Send nothing to a channel any more; returns how many waiting notifications were given up."""
        with self.engine.begin() as connection:
            connection.execute(
                upsert(schema.ChannelTable, connection.dialect.name, ["channel"]),
                {"channel": channel, "disabled_at_ms": now_ms, "reason": text.clean(reason, ERROR_LENGTH)},
            )
            return self._give_up_disabled(connection, now_ms)

    def enable_channel(self, channel: str) -> None:
        """Send again what arises from now on."""
        with self.engine.begin() as connection:
            connection.execute(delete(DISABLED).where(DISABLED.c.channel == channel))

    def disabled_channels(self) -> dict[str, str]:
        """Channel -> why it is disabled."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(DISABLED.c.channel, DISABLED.c.reason))
            return {row.channel: row.reason for row in rows}

    def retry(self, delivery_id: str, now_ms: int, actor: Actor | None = None) -> bool:
        """Send a dead notification once more, by a person's wish; False when it is not dead."""
        with self.engine.begin() as connection:
            done = connection.execute(
                update(DELIVERIES)
                .where(DELIVERIES.c.delivery_id == delivery_id, DELIVERIES.c.status == "dead")
                .values(status="pending", due_at_ms=now_ms, lease_owner=None, finished_at_ms=None)
            )
            if done.rowcount == 1 and actor is not None:
                record(connection, Action("delivery.retried", delivery_id, actor))
            return done.rowcount == 1

    def next_due_ms(self) -> int | None:
        """When the next notification may be claimed (a lease counts with its end); None = none waits."""
        with reading(self.engine) as connection:
            return connection.execute(
                select(func.min(DELIVERIES.c.due_at_ms)).where(_ACTIVE, _FIRST_IN_LINE)
            ).scalar()

    def _any(self, wanted: ColumnElement[bool]) -> bool:
        """Whether it is worth while to lock other writers out; nearly always it is not."""
        with reading(self.engine) as connection:
            return (
                connection.execute(select(DELIVERIES.c.delivery_id).where(wanted).limit(1)).first()
                is not None
            )

    def _end_lease(self, delivery_id: str, owner: str, values: dict[str, Any]) -> bool:
        with self.engine.begin() as connection:
            done = connection.execute(
                update(DELIVERIES)
                .where(
                    DELIVERIES.c.delivery_id == delivery_id,
                    DELIVERIES.c.status == "claimed",
                    DELIVERIES.c.lease_owner == owner,
                )
                .values(lease_owner=None, **values)
            )
            return done.rowcount == 1

    def _give_up_disabled(self, connection: Connection, now_ms: int) -> int:
        return connection.execute(
            update(DELIVERIES)
            .where(_DISABLED)
            .values(status="dead", finished_at_ms=now_ms, last_error="the channel is disabled")
        ).rowcount


def _lease(
    connection: Connection,
    rows: Sequence[Row[Any]],
    owner: str,
    now_ms: int,
    lease_ms: int,
    *,
    again: bool = False,
) -> None:
    """Take rows until now_ms + lease_ms; `again`: a repetition, which is no further attempt."""
    if rows:
        lease = {"b_owner": owner, "b_lease_until_ms": now_ms + lease_ms, "b_now_ms": now_ms}
        taken = [{"b_delivery_id": row.delivery_id, **lease, "b_attempt": int(not again)} for row in rows]
        connection.execute(_TAKE, taken)


def _claimed(row: Row[Any]) -> ClaimedDelivery:
    """The row as it was before the claim."""
    return ClaimedDelivery(
        delivery_id=row.delivery_id,
        incident_id=row.incident_id,
        event=row.event,
        channel=row.channel,
        payload=row.payload,
        attempts=row.attempts,
        created_at_ms=row.created_at_ms,
        first_attempt_at_ms=row.first_attempt_at_ms,
        delivered_at_ms=row.delivered_at_ms,
    )
