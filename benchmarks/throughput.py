"""How many records per second, beside the clients that only consume and two stream processors.

`python -m benchmarks.throughput` starts a broker (or takes KAFKA_BOOTSTRAP_SERVERS), writes one topic and
lets every contender read it in turn, each in its own process, for several rounds. CPU time is what is
compared: it includes the client's threads and leaves out the broker and whatever else the machine does.
benchmarks/peers.py says where the peers come from; one that is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import load, peers, rounds
from benchmarks.servers import broker_at

OURS = ("batches", "poll", "confluent")
STREAMS, QUIX = "Kafka Streams, count and mean", "Quix Streams, count and mean"


def consume_poll(bootstrap: str, topic: str, wanted: int) -> int:
    from kafka import KafkaConsumer, TopicPartition

    from monitor.config import SourceSettings

    fetch_bytes = SourceSettings().fetch_max_bytes
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_bytes=fetch_bytes, max_partition_fetch_bytes=fetch_bytes // 4,
    )  # fmt: skip
    consumer.assign([TopicPartition(topic, 0)])
    seen = 0
    while seen < wanted:
        seen += sum(map(len, consumer.poll(500, max_records=50_000).values()))
    consumer.close()
    return seen


def consume_confluent(bootstrap: str, topic: str, wanted: int) -> int:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False,
         "fetch.queue.backoff.ms": 5, "queued.max.messages.kbytes": 65_536}
    )  # fmt: skip
    consumer.assign([TopicPartition(topic, 0, 0)])
    seen = 0
    while seen < wanted:
        seen += sum(message.error() is None for message in consumer.consume(10_000, 0.5))
    consumer.close()
    return seen


def consume_ours(bootstrap: str, topic: str, wanted: int, reader: str) -> int:
    from monitor.config import SourceSettings
    from monitor.sources.base import Assigned, RawBatch
    from monitor.sources.opening import kafka_source

    source = kafka_source(SourceSettings.model_validate(kafka_options(bootstrap, topic, reader)))
    seen = 0
    while seen < wanted:
        for event in source.poll(0.2):
            if isinstance(event, Assigned):
                source.start(event.partition, 0)
            seen += len(event) if isinstance(event, RawBatch) else 0
    source.close()
    return seen


def kafka_options(bootstrap: str, topic: str, reader: str) -> dict[str, Any]:
    group = f"bench-{time.time()}"
    return {"bootstrap_servers": bootstrap, "topics": [topic], "group_id": group, "reader": reader}


def settings_for(source: dict[str, Any], directory: str) -> Any:
    from monitor.config import Settings

    return Settings.model_validate(
        {"source": source, "training": {"enabled": False}, "window": {"max_series": 1_000_000},
         "database": {"url": f"sqlite:///{directory}/bench.db"}, "http": {"enabled": False}}
    )  # fmt: skip


def whole_path(settings: Any, source: Any, wanted: int) -> int:
    """Poll, decode, windows, both detectors, commits to SQLite; returns records accounted for."""
    from monitor.runtime import Runtime

    with Runtime(settings) as runtime:
        pipeline = runtime.pipeline(source)
        while pipeline.records_read < wanted and pipeline.turn(0.2):
            pass
        pipeline.commit_all()
    return pipeline.records_read


def check(directory: str, truth: dict[tuple[str, int], tuple[int, int, float]], *, unfinished: int) -> int:
    """Every window of the database against what the log is known to hold; returns how many are right."""
    from sqlalchemy import create_engine, text

    query = (
        "select s.name, w.window_start_ms, w.request_count, w.error_rate, w.output_tokens_mean, "
        "w.gbdt_score, w.lstm_score from windows w join series s on s.id = w.series_id"
    )
    right = 0
    with create_engine(f"sqlite:///{directory}/bench.db").connect() as connection:
        for name, start, n, errors, tokens, gbdt, lstm in connection.execute(text(query)):
            count, failed, mean = truth.get((name, start), (0, 0, 0.0))
            if n == 0 and count == 0:
                continue
            assert n == count, (name, start, n, count)
            assert abs(errors - failed / count) < 1e-9 and abs(tokens - mean) < 1e-6 * max(mean, 1.0)
            assert gbdt is not None and lstm is not None
            right += 1
    assert right >= len(truth) - unfinished, (right, len(truth))
    return right


def measured(work: Callable[[], int], *, warm: Callable[[], int] | None = None) -> dict[str, Any]:
    if warm is not None:
        warm()
    wall, cpu = time.monotonic(), rounds.cpu_s()
    records = work()
    wall, cpu = time.monotonic() - wall, rounds.cpu_s() - cpu
    return {"records": records, "wall_s": wall, "cpu_s": cpu}


def one(name: str, bootstrap: str, topic: str, folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """One contender in this process. A short run first, so that compiled code and models are loaded; the
    collector of garbage is kept out of the way, as `inferwatch run` and `replay` do."""
    wanted = shape[0]
    consume = {"kafka-python": consume_poll, "confluent": consume_confluent}
    if name.startswith("consume "):
        client = name.removeprefix("consume ")
        run = consume.get(client) or partial(consume_ours, reader=client)
        return measured(lambda: run(bootstrap, topic, wanted), warm=lambda: run(bootstrap, topic, 1_000))
    if name == "decode msgspec":
        return measured(lambda: decode_only(folder / "log.jsonl"))
    from monitor.sources.file import FileSource
    from monitor.sources.opening import kafka_source
    from monitor.warming import spare_the_collector
    from storage.engine import connect, upgrade

    with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as directory:

        def run_in(place: str, path: str, records: int) -> int:
            if name == "whole file":
                settings = settings_for({"kind": "file"}, place)
                return whole_path(settings, FileSource([folder / path], settings.source), records)
            settings = settings_for(kafka_options(bootstrap, topic, name.removeprefix("whole ")), place)
            return whole_path(settings, kafka_source(settings.source), records)

        def warm() -> int:
            found = run_in(cold, "warm.jsonl", 10_000)
            spare_the_collector()
            return found

        for place in (cold, directory):  # a daemon finds its tables made, too
            upgrade(connect(f"sqlite:///{place}/bench.db"))
        result = measured(lambda: run_in(directory, "log.jsonl", wanted), warm=warm)
        truth = load.truth(load.make(*shape))
        result["windows_right"] = check(directory, truth, unfinished=2 * shape[1])
    return result


def decode_only(path: Path) -> int:
    """msgspec into a struct per line, which is thrown away."""
    from monitor.formats import native

    lines = path.read_bytes().splitlines()
    return sum(native.parse(line) is not None for line in lines)


@contextmanager
def topic_of(messages: list[bytes]) -> Iterator[tuple[str, str]]:
    from kafka import KafkaProducer

    from tests import services

    with broker_at() as bootstrap:
        topic = services.create_topic(bootstrap)
        producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=1 << 18)
        for message in messages:
            producer.send(topic, value=message, key=b"k", partition=0)
        producer.flush()
        producer.close()
        yield bootstrap, topic


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| contender | thousand records per CPU second | per second of wall time |", "|---|---|---|"]
    for name, results in found.items():
        per_cpu, per_wall = ([r["records"] / r[k] / 1000 for r in results] for k in ("cpu_s", "wall_s"))
        lines.append(f"| {name} | {rounds.spread(per_cpu)} | {rounds.spread(per_wall)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quix-records", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (options.records, options.series, options.minutes)
    if options.one:
        name, bootstrap, topic, folder = options.one
        print(json.dumps(one(name, bootstrap, topic, Path(folder), shape)))
        return
    sizes = [f"--records={shape[0]}", f"--series={shape[1]}", f"--minutes={shape[2]}"]
    names = ["consume kafka-python", "consume confluent", "consume batches", "decode msgspec"]
    names += [f"whole {reader}" for reader in OURS] + ["whole file"]
    if find_spec("confluent_kafka") is None:
        names = [name for name in names if "confluent" not in name]
    with tempfile.TemporaryDirectory() as folder:
        made = load.make(*shape)
        messages = load.write(made, Path(folder) / "log.jsonl")
        (Path(folder) / "warm.jsonl").write_bytes(b"\n".join(messages[:10_000]) + b"\n")
        with topic_of(messages) as (bootstrap, topic):
            here = [sys.executable, "-m", "benchmarks.throughput", *sizes, "--one"]
            contenders: dict[str, Callable[[], dict[str, Any]]] = {
                name: partial(rounds.child, [*here, name, bootstrap, topic, folder]) for name in names
            }
            contenders |= peers_on(bootstrap, topic, folder, made, options.quix_records)
            found = rounds.interleave(contenders, options.rounds)
    print("\n".join(table(found)))
    compared = {kind: compare(found, kind) for kind in ("cpu_s", "wall_s")}
    print("\n| ratio of records per second | of CPU: min / median / max | of wall time |\n|---|---|---|")
    for pair in compared["cpu_s"]:
        print(f"| {pair} | {' | '.join(rounds.spread(compared[kind][pair]) for kind in compared)} |")
    rounds.save("throughput", {"machine": rounds.machine(), "shape": shape, "results": found,
                               "ratios": compared}, options.out)  # fmt: skip


def peers_on(
    bootstrap: str, topic: str, folder: str, made: load.Load, quix_records: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The peers that are here, each with a check of what it saw."""

    def checked(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        result = run()
        peers.check(name, result, made.latency_ms)
        return result

    found: dict[str, Callable[[], dict[str, Any]]] = {}
    if shutil.which("javac") and shutil.which("mvn"):
        peers.streams_classpath()  # not on anybody's time
        run = partial(peers.kafka_streams, bootstrap, topic, len(made), folder)
        found[STREAMS] = partial(checked, STREAMS, run)
    if python := os.environ.get("QUIX_PYTHON"):
        run = partial(peers.quix, python, bootstrap, topic, min(quix_records, len(made)))
        found[QUIX] = partial(checked, QUIX, run)
    for name in {STREAMS, QUIX} - found.keys():
        print(f"not here, left out: {name}", file=sys.stderr)
    return found


def compare(found: dict[str, list[dict[str, Any]]], kind: str) -> dict[str, list[float]]:
    """Records per second of one contender over those of another, per round; `kind` is cpu_s or wall_s."""
    rates = {name: [{"rate": r["records"] / r[kind]} for r in results] for name, results in found.items()}
    return {
        f"{of} : {to}": rounds.ratios(rates, of, to, "rate")
        for of, to in (
            ("consume batches", "consume kafka-python"), ("consume confluent", "consume kafka-python"),
            ("whole batches", "consume kafka-python"), ("whole poll", "consume kafka-python"),
            ("whole confluent", "consume confluent"), ("whole file", "decode msgspec"),
            *((f"whole {reader}", peer) for peer in (STREAMS, QUIX) for reader in OURS),
        )
        if of in rates and to in rates
    }  # fmt: skip


if __name__ == "__main__":
    main()
