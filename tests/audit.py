"""The audit of what a fleet under faults left, against a run that nothing disturbed: promises with counts."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from monitor.daemon import EXIT_FORCED
from tests.daemons import Daemon, rows, snapshot, totals, wait_for
from tests.fleet import OWNERS, Fleet, owner_pid
from tests.receivers import Hook

EXIT_S = 5.0
SHOWN, SHOWN_CHARACTERS = 4, 2_000  # of the rows that differ
SETTLE_S = 300.0  # without a message or a notification: it stands still, however slow the machine is


def settled(database: str, produced: int) -> bool:
    """Everything read, every transition folded, every notification delivered."""
    try:
        waiting = "select (select count(*) from alert_transitions where not folded) as folds, "
        waiting += "(select count(*) from deliveries where status in ('pending', 'claimed')) as sends"
        found = rows(database, waiting)[0]
        return totals(database)["position"] == produced and not found["folds"] and not found["sends"]
    except Exception:  # the database is being made, or is away
        return False


@dataclass(frozen=True)
class Promise:
    text: str
    count: str
    kept: bool
    timed: bool = False  # depends on how fast the machine is; a test does not ask


def audit(
    *,
    database: str,
    oracle: str,
    produced: int,
    read_under_faults: int,
    received: Hook,
    oracle_received: Hook,
    fleet: Fleet,
) -> list[Promise]:
    """The promises with what was counted; compares row for row with the run that nothing disturbed."""
    found = totals(database)
    told = found["accepted"] + found["rejected"] + found["late"] + found["duplicates"]
    promises = [
        Promise(
            "accepted + rejected + late + duplicate = produced",
            f"{found['accepted']:,} + {found['rejected']:,} + {found['late']:,} + {found['duplicates']:,} "
            f"= {told:,} of {produced:,}",
            told == produced == found["records"] and found == totals(oracle),
        )
    ]
    left, right = snapshot(database), snapshot(oracle)
    for view, expected in right.items():
        missing, extra = Counter(expected) - Counter(left[view]), Counter(left[view]) - Counter(expected)
        promises.append(
            Promise(
                f"{view} equals the undisturbed run",
                f"{len(left[view]):,} rows, {missing.total()} missing, {extra.total()} not expected"
                + _shown("missing", missing)
                + _shown("not expected", extra),
                left[view] == expected,
            )
        )
    counts = {view: len(right[view]) for view in ("alert_history", "incident_history")}
    counts["deliveries"] = len(set(oracle_received.ids))
    promises.append(
        Promise(
            "there is something to compare",
            ", ".join(f"{count} in {name}" for name, count in counts.items()),
            all(counts.values()),
        )
    )
    promises.append(
        Promise(
            "most is read while faults go on",
            f"{read_under_faults:,} of {produced:,}",
            2 * read_under_faults > produced,
            timed=True,
        )
    )
    for name, url, hook in (("", database, received), (" (undisturbed)", oracle, oracle_received)):
        ids = {row["delivery_id"] for row in rows(url, "select delivery_id from delivery_history")}
        got = Counter(hook.ids)
        promises.append(
            Promise(
                f"every delivery id received at least once{name}",
                f"{len(ids)} ids, {len(ids - set(got))} missing, {got.total() - len(got)} sent again",
                ids == set(got),
            )
        )
    return promises + _endings(database, fleet)


def _shown(what: str, rows: Counter[tuple[Any, ...]]) -> str:
    return "".join(f"\n        {what}: {str(row)[:SHOWN_CHARACTERS]}" for row in sorted(rows)[:SHOWN])


def _endings(database: str, fleet: Fleet) -> list[Promise]:
    """How the daemons ended. One that was killed, or whose end was forced (a database or broker that does
    not answer, a machine too busy), may leave claims: its next owner takes them, and at the end none comes.
    """
    asked = [end for end in fleet.exits if end.took_s is not None]
    slowest_s = max((end.took_s or 0.0 for end in asked), default=0.0)
    forced = [end for end in asked if end.code == EXIT_FORCED]
    wrong = [end for end in fleet.exits if end.wrong]
    owners = [owner_pid(row["owner"]) for row in rows(database, OWNERS)]
    orderly = {end.pid for end in asked if end.code == 0}
    left = [pid for pid in owners if pid in orderly]
    return [
        Promise(
            f"SIGTERM ends within {EXIT_S:g} s",
            f"{len(asked)} times, slowest {slowest_s:.1f} s",
            slowest_s <= EXIT_S,
            timed=True,
        ),
        Promise("SIGTERM ends in order", f"{len(forced)} of {len(asked)} forced", not forced, timed=True),
        Promise(
            "no claim left by a daemon that ended in order",
            f"{len(left)} left, {len(owners) - len(left)} by others",
            not left,
        ),
        Promise(
            "no daemon ends by itself or with an error",
            f"{len(wrong)} ended" + "".join(f"\n{end}" for end in wrong),
            not wrong,
        ),
    ]


def wait_settled(name: str, database: str, produced: int, daemon: Daemon | None = None) -> None:
    """Until everything is read and told, however long that takes while something moves."""
    seen: tuple[int, int] | None = None
    done = False

    def moves_or_is_done() -> bool:
        nonlocal seen, done
        done = settled(database, produced)
        before, seen = seen, moved(database) or seen
        return done or seen != before

    while not done:
        wait_for(f"the end of the {name} run", moves_or_is_done, SETTLE_S, daemon)
        time.sleep(0.2)


def moved(database: str) -> tuple[int, int] | None:
    """What only grows while a run goes on: messages accounted for, notifications delivered."""
    with contextlib.suppress(Exception):  # the database is being made, or is away
        sent = rows(database, "select count(*) as n from deliveries where status = 'delivered'")[0]["n"]
        return totals(database)["position"], int(sent)
    return None
