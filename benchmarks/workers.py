"""What several workers of one machine bring: `python -m benchmarks.workers [--workers 1 2] [--rounds 3]`.

`inferwatch run --workers N` over PostgreSQL (INFERWATCH_TEST_POSTGRES, or one of our own) owns every
partition of a topic before there is anything to read: the records are written in a transaction, and the clock
runs from its end, which shows all of them at once, to the commit of the last one. Wall time is compared, and
the CPU time of the workers said beside it. Their start, of some seconds each, is left out of the former.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import load, rounds
from benchmarks.servers import broker_at, postgres_at
from tests import services
from tests.daemons import command, rows, totals, wait_for

CONFIG = """
[source]
topics = ["{topic}"]
bootstrap_servers = "{bootstrap}"
group_id = "{topic}"
[database]
url = "{database}"
[http]
enabled = false
[training]
enabled = false
"""


@contextmanager
def in_one_transaction(bootstrap: str, topic: str, made: load.Load, partitions: int) -> Iterator[None]:
    """The log, by series over the partitions; nobody sees a record of it before the end of the block."""
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=uuid.uuid4().hex, transaction_timeout_ms=600_000,
        linger_ms=20, batch_size=1 << 18,
    )  # fmt: skip
    producer.init_transactions()
    producer.begin_transaction()
    for line, series in zip(load.lines(made), made.series.tolist(), strict=True):
        producer.send(topic, value=line, partition=series % partitions)
    producer.flush()
    yield
    producer.commit_transaction()
    producer.close()


def measure(
    workers: int, bootstrap: str, server: str, shape: tuple[int, int, int], partitions: int
) -> dict[str, Any]:
    made = load.make(*shape)
    topic, database = (
        services.create_topic(bootstrap, partitions=partitions),
        services.create_database(server),
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "inferwatch.toml", Path(folder) / "log"
        config.write_text(CONFIG.format(topic=topic, bootstrap=bootstrap, database=database))
        options = ["--workers", str(workers), "--config", str(config)]
        with log.open("wb") as out:
            process = subprocess.Popen(command("run", *options), stdout=out, stderr=subprocess.STDOUT)

        def settled() -> bool:
            if log.read_text().count('"started"') < workers:
                return False
            found = rows(database, "select owner from partitions where owner is not null")
            return len(found) == partitions and len({row["owner"] for row in found}) == workers

        try:
            with in_one_transaction(bootstrap, topic, made, partitions):
                wait_for("every worker to own partitions", settled, 300)
                began_s = time.monotonic()
            wait_for("all records", lambda: totals(database)["records"] == len(made), 600)
            wall_s = time.monotonic() - began_s
        finally:
            process.terminate()
            process.wait(30)
    services.drop_database(server, database)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"records": len(made), "wall_s": wall_s, "cpu_with_start_s": cpu_s, "rate": len(made) / wall_s}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    shape = (options.records, options.series, options.minutes)
    with broker_at() as bootstrap, postgres_at() as server:
        run = partial(measure, bootstrap=bootstrap, server=server, shape=shape, partitions=options.partitions)
        contenders = {f"{n} workers": partial(run, n) for n in options.workers}
        found = rounds.interleave(contenders, options.rounds)
    print("| | thousand records per second of wall time | CPU s, starts included |\n|---|---|---|")
    for name, results in found.items():
        rates, cpus = [r["rate"] / 1000 for r in results], [r["cpu_with_start_s"] for r in results]
        print(f"| {name} | {rounds.spread(rates)} | {rounds.spread(cpus)} |")
    first, *others = found
    compared = {f"{name} : {first}": rounds.ratios(found, name, first, "rate") for name in others}
    for pair, values in compared.items():
        print(f"{pair}, records per second: {rounds.spread(values)}")
    rounds.save("workers", {"machine": rounds.machine(), "shape": shape, "results": found,
                            "ratios": compared}, options.out)  # fmt: skip


if __name__ == "__main__":
    main()
