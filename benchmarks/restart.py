"""A daemon killed with -9 in the middle of a real topic leaves what one that was not killed leaves.

    python benchmarks/restart.py [--records 1000000] [--partitions 2] [--kills 1] [--postgres]

Starts a broker (and a PostgreSQL), fills a topic with simulated services and faults, lets one daemon read
it undisturbed and another one that is killed, and compares the stable views row for row. Prints a table
and exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from monitor.listen import Received, Receiver
from monitor.simulate import SimulateOptions, simulate
from tests import services
from tests.daemons import Daemon, rows, snapshot, totals, wait_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SERVICES, DAYS = 6, 2.0
TIMEOUT_S = 3_600.0


def config(path: Path, *, bootstrap: str, topic: str, group: str, database: str, webhook: str) -> Path:
    path.write_text(
        f'[source]\nbootstrap_servers = "{bootstrap}"\ntopics = ["{topic}"]\ngroup_id = "{group}"\n'
        f'session_timeout_s = 10\n[database]\nurl = "{database}"\n[http]\nenabled = false\n'
        "[training]\nevery_h = 24\n"
        f'[channels.bench]\nurl = "{webhook}"\nsecret = "{SECRET}"\nallow_private = true\n'
    )
    return path


def position(database: str) -> int:
    try:
        return totals(database)["records"]
    except Exception:  # the daemon is still making the database
        return 0


def read_all(
    folder: Path, name: str, *, bootstrap: str, topic: str, database: str, produced: int, kills: int
) -> tuple[float, list[Received]]:
    """One whole reading of the topic; seconds it took, and what its receiver got."""
    received: list[Received] = []
    with Receiver(secret=SECRET, on_event=received.append) as receiver:
        path = config(
            folder / f"{name}.toml",
            bootstrap=bootstrap,
            topic=topic,
            group=f"group-{name}",
            database=database,
            webhook=receiver.url,
        )
        daemon = Daemon(path, folder / f"{name}.log")
        started_s = time.monotonic()
        for kill in range(kills):
            with daemon:
                aim = produced * (kill + 1) // (kills + 1)
                wait_for(f"record {aim}", lambda aim=aim: position(database) >= aim, TIMEOUT_S, daemon)
                daemon.kill()
        with daemon:
            wait_for("the whole topic", lambda: position(database) == produced, TIMEOUT_S, daemon)
            took_s = time.monotonic() - started_s
            undelivered = "select count(*) as n from deliveries where status <> 'delivered'"
            wait_for("every delivery", lambda: rows(database, undelivered)[0]["n"] == 0, 120, daemon)
            code = daemon.stop(60)
            assert code == 0, f"exit code {code}"
    return took_s, received


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        broker = services.Broker()
        broker.start()
        postgres = services.Postgres() if options.postgres else None
        if postgres is not None:
            postgres.start()
        topic = services.create_topic(broker.bootstrap, partitions=options.partitions)
        made = simulate(
            SimulateOptions(
                topic=topic,
                bootstrap_servers=broker.bootstrap,
                days=DAYS,
                services=SERVICES,
                rate_per_s=options.records / (SERVICES * DAYS * 86_400),
                seed=5,
                random_faults=2,
            )
        )
        print(
            f"{made.records:,} records of {SERVICES} services, {DAYS:g} days, {options.partitions} partitions"
        )
        taken, counted = {}, {}
        for name, kills in (("undisturbed", 0), ("killed", options.kills)):
            url = f"sqlite:///{folder / name}.db"
            if postgres is not None:
                url = services.create_database(postgres.url)
            took_s, received = read_all(
                folder,
                name,
                bootstrap=broker.bootstrap,
                topic=topic,
                database=url,
                produced=made.records,
                kills=kills,
            )
            taken[name], counted[name] = snapshot(url), totals(url)
            ids = {row["delivery_id"] for row in rows(url, "select delivery_id from delivery_history")}
            got = [event.delivery_id for event in received]
            print(
                f"{name:12} {took_s:7.1f} s  {counted[name]}  "
                + "  ".join(f"{view} {len(found):,}" for view, found in taken[name].items())
                + f"  deliveries {len(ids)} missing {len(ids - set(got))} bad signatures "
                f"{sum(not event.verified for event in received)}"
            )
        differing = [view for view in taken["killed"] if taken["killed"][view] != taken["undisturbed"][view]]
        same_counts = counted["killed"] == counted["undisturbed"]
        print("equal" if not differing and same_counts else f"DIFFERENT: {differing or 'counts'}")
        broker.stop()
        if postgres is not None:
            postgres.stop()
        return 0 if not differing and same_counts else 1


if __name__ == "__main__":
    sys.exit(main())
