"""A fleet that is killed, frozen and cut off leaves what an undisturbed daemon leaves: a table of promises.

    python benchmarks/chaos.py [--records 60000] [--kills 20] [--freezes 4] [--rebalances 4]
        [--terms 6] [--broker-kills 2] [--broker-hangs 1] [--database-stops 2] [--seed 1]
        [--sqlite] [--forked]

The full size is two runs of --records 1000000 --kills 100 --freezes 30, one of them with --sqlite, and one
of --rebalances 100 --terms 100 --broker-kills 20. Starts a broker and a PostgreSQL; three daemons of one
consumer group (with --sqlite: one) read a topic of six partitions while it is written; then one daemon reads
the same topic undisturbed into a database of its own, and the stable views are compared row for row. The log
is produced and the faults come as reading goes on: fault n of N falls at a random place in the n-th part of
the log. Exits 1 if any promise is broken.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.outages import GROUP, Outages
from monitor.simulate import SimulateOptions, simulate
from tests import services
from tests.audit import Promise, audit, wait_settled
from tests.daemons import Daemon, command
from tests.fleet import Fleet, stop_all, write_config
from tests.forks import Forks
from tests.logs import BAD_LINES, lines
from tests.receivers import hook
from tests.trickle import Trickle, by_series, end_offsets, run_faults

PARTITIONS, DAEMONS = 6, 3
SERVICES, MODELS, MIN_PER_MINUTE, MAX_MINUTES = 12, 5, 12, 2_160
QUIET_MINUTES, FAULT_EVERY_MINUTES, FAULT_MINUTES = 60, 75, 25
STRONG = (("error_burst", 0.6), ("slow", 6.0), ("bad_version", 0.9), ("timeouts", 0.6))  # seen in any service


def log_minutes(records: int) -> float:
    """Event time of the log: enough records a minute for a fault to show."""
    return min(records / (SERVICES * MIN_PER_MINUTE), MAX_MINUTES)


def faults_of_log(minutes: float) -> tuple[str, ...]:
    """Strong, long faults of every service, at times of their own: dozens of alerts even in a short log."""
    found = []
    for service in range(1, SERVICES + 1):
        first = QUIET_MINUTES + service * FAULT_EVERY_MINUTES // SERVICES
        for n, at in enumerate(range(first, int(minutes) - FAULT_MINUTES, FAULT_EVERY_MINUTES)):
            kind, size = STRONG[(n + service) % len(STRONG)]
            found.append(f"{kind}@{service}:{at}m+{FAULT_MINUTES}m*{size}")
    return tuple(found)


def log_lines(folder: Path, records: int, seed: int) -> list[bytes]:
    """Simulated services of a few models with faults; some messages are bad, repeated or late."""
    path = folder / "log.jsonl"
    minutes = log_minutes(records)
    simulate(
        SimulateOptions(
            out=path,
            days=minutes / 1_440,
            services=SERVICES,
            rate_per_s=records / (SERVICES * minutes * 60),
            seed=seed,
            faults=faults_of_log(minutes),
        )
    )
    models: dict[str, str] = {}
    found: list[bytes] = []
    delayed: list[tuple[int, bytes]] = []
    for i, line in enumerate(path.read_bytes().splitlines()):
        record = json.loads(line)
        series = f"{record['model']}-{record.get('endpoint')}"
        record["model"] = models.setdefault(series, f"model-{len(models) % MODELS}")
        record["endpoint"] = series
        line = json.dumps(record).encode()
        if i % 499 == 0:
            found.append(BAD_LINES[i // 499 % len(BAD_LINES)][0])
        if i % 997 == 0:
            found.append(line)
        if i % 1_009 == 0:
            delayed.append((i + records // 300, line))
        else:
            found.append(line)
        while delayed and delayed[0][0] <= i:
            found.append(delayed.pop(0)[1])
    return found + [line for _, line in delayed]


def warm_up(folder: Path) -> None:
    """The first process on a machine compiles; that is not what is measured here."""
    log = folder / "warm-up.jsonl"
    log.write_bytes(b"\n".join(lines(minutes=30)) + b"\n")
    database = f"sqlite:///{folder / 'warm-up.db'}"
    subprocess.run(command("replay", str(log), "--database", database), check=True, stdout=subprocess.DEVNULL)


def plan(
    options: argparse.Namespace,
    fleet: Fleet,
    broker: services.Broker,
    postgres: services.Postgres,
    topic: str,
    outages: Outages,
) -> list[tuple[str, Callable[[], None]]]:
    broker_away = partial(outages.broker, fleet, broker, topic)
    database_away = partial(outages.database, fleet, broker, postgres)
    stops = 0 if options.sqlite else options.database_stops
    kinds: list[tuple[str, Callable[[], None], int]] = [
        ("kill", fleet.kill, options.kills),
        ("freeze", fleet.freeze, options.freezes),
        ("rebalance", lambda: (fleet.join(), fleet.leave())[0], 0 if options.sqlite else options.rebalances),
        ("term", lambda: (fleet.leave(), fleet.join())[0], options.terms),
        ("broker", lambda: broker_away(options.down_s, hang=False), options.broker_kills),
        ("broker", lambda: broker_away(options.hang_s, hang=True), options.broker_hangs),
        ("database", lambda: database_away(options.down_s, hang=False), (stops + 1) // 2),
        ("database", lambda: database_away(options.hang_s, hang=True), stops // 2),
    ]
    faults = [(name, do) for name, do, times in kinds for _ in range(times)]
    fleet.rng.shuffle(faults)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("records", 60_000), ("kills", 20), ("freezes", 4), ("rebalances", 4), ("terms", 6),
        ("broker-kills", 2), ("broker-hangs", 1), ("database-stops", 2), ("seed", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sqlite", action="store_true", help="one daemon over SQLite")
    parser.add_argument("--forked", action="store_true", help="daemons are forked from one that has started")
    parser.add_argument("--down-s", type=float, default=20.0)
    parser.add_argument("--hang-s", type=float, default=15.0)
    parser.add_argument("--keep", type=Path, help="folder that keeps the daemons' logs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return chaos(options, options.keep or Path(temporary))


def chaos(options: argparse.Namespace, folder: Path) -> int:
    folder.mkdir(exist_ok=True, parents=True)
    if not options.forked:  # where they are, the one that they are forked from warms up
        warm_up(folder)
    broker, postgres = services.Broker().start(), services.Postgres().start()
    topic = services.create_topic(broker.bootstrap, partitions=PARTITIONS)
    messages = by_series(log_lines(folder, options.records, options.seed), PARTITIONS)
    if options.sqlite:
        disturbed, oracle = (f"sqlite:///{folder / name}.db" for name in ("disturbed", "oracle"))
    else:
        disturbed, oracle = (services.create_database(postgres.url) for _ in range(2))
    with hook() as received, hook() as oracle_received:
        common = {"bootstrap": broker.bootstrap, "topic": topic}
        config = write_config(
            folder / "fleet.toml", **common, group=GROUP, database=disturbed, webhook=received.url
        )
        size = 1 if options.sqlite else DAEMONS
        forks = Forks() if options.forked else None
        fleet = Fleet(folder, config, disturbed, random.Random(options.seed), size, forks)
        started_s, outages = time.monotonic(), Outages()
        try:
            for _ in range(size):
                fleet.add()
            faults = plan(options, fleet, broker, postgres, topic, outages)
            trickle = Trickle(broker.bootstrap, topic, messages, len(faults))
            trickle.start()
            read = run_faults(fleet, trickle, faults)
            trickle.join()
            produced = sum(end_offsets(broker.bootstrap, topic).values())
            wait_settled("disturbed", disturbed, produced, fleet.daemons[0])
            stop_all(fleet)
        finally:
            fleet.close()
            if forks is not None:
                forks.close()
        took_s = time.monotonic() - started_s
        config = write_config(
            folder / "oracle.toml", **common, group="oracle", database=oracle, webhook=oracle_received.url
        )
        with Daemon(config, folder / "oracle.log") as daemon:
            wait_settled("undisturbed", oracle, produced, daemon)
            daemon.stop()
        promises = audit(
            database=disturbed,
            oracle=oracle,
            produced=produced,
            read_under_faults=read,
            received=received,
            oracle_received=oracle_received,
            fleet=fleet,
        )
    postgres.stop()
    broker.stop()
    print(
        f"\n{len(messages):,} messages, {PARTITIONS} partitions, daemons: {size} over "
        f"{'SQLite' if options.sqlite else 'PostgreSQL'}, {took_s:.0f} s, seed {options.seed}"
    )
    return report(fleet, promises + outages.promises())


def report(fleet: Fleet, promises: list[Promise]) -> int:
    """The table: what was done, what the daemons noticed, and every promise with its count."""
    for name, count in sorted(fleet.faults.items()):
        print(f"  {count:4}  {name}")
    for event, meaning in (
        ("partition_lost", "commits of an owner that had lost its partition, refused"),
        ("database_unavailable", "waits for the database"),
        ("source.unavailable", "outages of the broker noticed"),
        ("source.rebuild", "consumers made anew"),
    ):
        print(f"  {fleet.logged(event):4}  {meaning}")
    print()
    for promise in promises:
        print(f"{'kept  ' if promise.kept else 'BROKEN'}  {promise.text}: {promise.count}")
    return 0 if all(promise.kept for promise in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
