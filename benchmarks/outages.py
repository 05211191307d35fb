"""A broker or a database that is away for a while, and how a fleet takes it; a part of chaos.py."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from kafka import KafkaAdminClient

from tests import services
from tests.audit import Promise
from tests.daemons import totals
from tests.fleet import SESSION_S, Fleet
from tests.trickle import end_offsets

FIRST_RECORD_S = 5.0  # behind a fresh client's success
WAIT_S, NEWS_S = 120.0, 30.0  # for the first record; for one to be produced at all
MEMORY_MB = 32  # that may come in the meantime: a fleet that was started moments ago still grows
GROUP = "fleet"


@dataclass
class Outages:
    """What was measured while the broker or the database was away."""

    first_record_s: list[float] = field(default_factory=list)
    no_news: int = 0  # outages of the broker behind which there was nothing to read
    never: int = 0  # outages of the broker behind which no record came in time
    members_lost: int = 0
    grew_mb: list[float] = field(default_factory=list)

    def broker(self, fleet: Fleet, broker: services.Broker, topic: str, down_s: float, hang: bool) -> None:
        """Killed or hanging for `down_s`; then the time from the moment at which a fresh client sees records
        that nobody has accounted for, until the first of them is."""
        fleet.faults[f"broker {'hanging' if hang else 'down'} for {down_s:g} s"] += 1
        self._cut_off(broker, down_s, hang=hang)
        begun_s = time.monotonic()
        at = position(fleet)
        while fresh_end(broker, topic) <= at:
            at = max(at, position(fleet))
            if time.monotonic() - begun_s > NEWS_S:
                self.no_news += 1  # everything is read, and nothing is produced before the next fault
                return
            time.sleep(0.1)
        seen_s = time.monotonic()
        while position(fleet) <= at:
            if time.monotonic() - seen_s > WAIT_S:
                self.never += 1
                return
            time.sleep(0.05)
        self.first_record_s.append(time.monotonic() - seen_s)

    def database(
        self, fleet: Fleet, broker: services.Broker, postgres: services.Postgres, down_s: float, hang: bool
    ) -> None:
        """Killed or hanging for `down_s`, while who is in the group and what memory they take is watched."""
        fleet.faults[f"PostgreSQL {'hanging' if hang else 'down'} for {down_s:g} s"] += 1
        members, before = settled_members(broker, fleet), memory_mb(fleet)
        if hang:
            postgres.pause()
        else:
            postgres.kill()
        time.sleep(down_s)
        after = memory_mb(fleet)
        self.members_lost += len(members - group_members(broker))
        self.grew_mb += [after[pid] - mb for pid, mb in before.items() if pid in after]
        (postgres.unpause if hang else postgres.start)()

    def _cut_off(self, broker: services.Broker, down_s: float, *, hang: bool) -> None:
        (broker.pause if hang else broker.kill)()
        time.sleep(down_s)
        (broker.unpause if hang else broker.start)()

    def promises(self) -> list[Promise]:
        found = []
        if self.first_record_s or self.never:
            slow = sum(s > FIRST_RECORD_S for s in self.first_record_s)
            ordered = sorted(self.first_record_s) or [float("inf")]
            found.append(
                Promise(
                    f"first record within {FIRST_RECORD_S:g} s of a fresh client's success",
                    f"{len(self.first_record_s)} outages of the broker, median "
                    f"{ordered[len(ordered) // 2]:.1f} s, slowest {ordered[-1]:.1f} s, {slow} slower, "
                    f"{self.never} without, {self.no_news} with nothing to read",
                    not slow and not self.never,
                    timed=True,
                )
            )
        if self.grew_mb:
            found.append(
                Promise(
                    "a database that is away: membership kept, memory flat",
                    f"{self.members_lost} members lost, {max(self.grew_mb):+.0f} MB at most",
                    not self.members_lost and max(self.grew_mb) <= MEMORY_MB,
                    timed=True,
                )
            )
        return found


def position(fleet: Fleet) -> int:
    """How many messages are accounted for; -1 where the database does not say."""
    with contextlib.suppress(Exception):
        return totals(fleet.database)["position"]
    return -1


def fresh_end(broker: services.Broker, topic: str) -> int:
    """How many messages lie in the topic, as a client says that is made for this; 0 without an answer."""
    with contextlib.suppress(Exception):
        return sum(end_offsets(broker.bootstrap, topic).values())
    return 0


def group_members(broker: services.Broker) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        return {member["member_id"] for member in admin.describe_groups([GROUP])[GROUP]["members"]}
    finally:
        admin.close()


def settled_members(broker: services.Broker, fleet: Fleet) -> set[str]:
    """Who is in the group, once nobody is in it any more who was killed, or stopped for too long."""
    found = group_members(broker)
    for _ in range(6):
        time.sleep(SESSION_S + 1.0)
        before, found = found, group_members(broker)
        if found == before and len(found) == len(fleet.running()):
            break
    return found


def memory_mb(fleet: Fleet) -> dict[int, float]:
    """Resident memory of those that run, by process."""
    found = {}
    for daemon in fleet.running():
        assert daemon.process is not None
        with contextlib.suppress(OSError), open(f"/proc/{daemon.process.pid}/status") as handle:
            kb = next(int(line.split()[1]) for line in handle if line.startswith("VmRSS"))
            found[daemon.process.pid] = kb / 1024
    return found
