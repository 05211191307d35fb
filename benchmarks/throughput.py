"""How many records per second, beside the clients that only consume and beside Quix Streams.

`python -m benchmarks.throughput` starts a broker (or takes KAFKA_BOOTSTRAP_SERVERS), writes one topic and
lets every contender read it in turn, each in its own process, for several rounds. CPU time is what is
compared: it includes the client's threads and leaves out the broker and whatever else the machine does.
QUIX_PYTHON names the interpreter of an environment with quixstreams in it; a peer that is not installed is
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import load, rounds

OURS = ("batches", "poll")
QUIX = """
import json, sys, time, resource, tempfile
from quixstreams import Application
from quixstreams.dataframe.windows import Count, Mean
bootstrap, topic, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
app = Application(broker_address=bootstrap, consumer_group=f"q{time.time()}", auto_offset_reset="earliest",
                  state_dir=tempfile.mkdtemp(), loglevel="ERROR")
source = app.topic(topic, value_deserializer="json", timestamp_extractor=lambda v, h, t, k: t)
frame = app.dataframe(source)
seen = [0, 0.0, 0.0]
def mark(value):
    if not seen[0]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seen[1:] = [time.monotonic(), used.ru_utime + used.ru_stime]
    seen[0] += 1
frame = frame.update(mark)
frame = frame.tumbling_window(60_000).agg(n=Count(), latency=Mean("latency_ms")).final()
app.run(count=wanted)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"records": seen[0], "wall_s": time.monotonic() - seen[1],
                  "cpu_s": used.ru_utime + used.ru_stime - seen[2]}))
"""


def consume_poll(bootstrap: str, topic: str, wanted: int) -> int:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_bytes=16 << 20, max_partition_fetch_bytes=4 << 20,
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
    from monitor.sources.kafka import KafkaSource

    source = KafkaSource(SourceSettings.model_validate(kafka_options(bootstrap, topic, reader)))
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
        {"source": source, "training": {"enabled": False},
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
    """One contender in this process. A short run first, so that compiled code and models are loaded."""
    wanted = shape[0]
    consume = {"kafka-python": consume_poll, "confluent": consume_confluent}
    if name.startswith("consume "):
        client = name.removeprefix("consume ")
        run = consume.get(client) or partial(consume_ours, reader=client)
        return measured(lambda: run(bootstrap, topic, wanted), warm=lambda: run(bootstrap, topic, 1_000))
    if name == "decode msgspec":
        return measured(lambda: decode_only(folder / "log.jsonl"))
    from monitor.sources.file import FileSource
    from monitor.sources.kafka import KafkaSource

    with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as directory:

        def run_in(place: str, path: str, records: int) -> int:
            if name == "whole file":
                settings = settings_for({"kind": "file"}, place)
                return whole_path(settings, FileSource([folder / path], settings.source), records)
            settings = settings_for(kafka_options(bootstrap, topic, name.removeprefix("whole ")), place)
            return whole_path(settings, KafkaSource(settings.source), records)

        result = measured(
            lambda: run_in(directory, "log.jsonl", wanted), warm=lambda: run_in(cold, "warm.jsonl", 10_000)
        )
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

    broker, bootstrap = None, os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if bootstrap is None:
        broker = services.Broker().start()
        bootstrap = broker.bootstrap
    try:
        topic = services.create_topic(bootstrap)
        producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=1 << 18)
        for message in messages:
            producer.send(topic, value=message, key=b"k", partition=0)
        producer.flush()
        producer.close()
        yield bootstrap, topic
    finally:
        if broker is not None:
            broker.stop()


def quix(python: str, bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    return rounds.child([python, "-c", QUIX, bootstrap, topic, str(records)])


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
    names = ["consume kafka-python", "consume batches", "decode msgspec"]
    names += ["consume confluent"] if find_spec("confluent_kafka") else []
    names += [f"whole {reader}" for reader in OURS] + ["whole file"]
    with tempfile.TemporaryDirectory() as folder:
        messages = load.write(load.make(*shape), Path(folder) / "log.jsonl")
        (Path(folder) / "warm.jsonl").write_bytes(b"\n".join(messages[:10_000]) + b"\n")
        with topic_of(messages) as (bootstrap, topic):
            here = [sys.executable, "-m", "benchmarks.throughput", *sizes, "--one"]
            contenders: dict[str, Callable[[], dict[str, Any]]] = {
                name: partial(rounds.child, [*here, name, bootstrap, topic, folder]) for name in names
            }
            if python := os.environ.get("QUIX_PYTHON"):
                contenders["Quix Streams, count and mean"] = partial(
                    quix, python, bootstrap, topic, min(options.quix_records, shape[0])
                )
            found = rounds.interleave(contenders, options.rounds)
    print("\n".join(table(found)))
    rates = {name: [{"rate": r["records"] / r["cpu_s"]} for r in results] for name, results in found.items()}
    compared = {}
    for of, to in (
        ("whole batches", "consume kafka-python"), ("whole poll", "consume kafka-python"),
        ("whole file", "decode msgspec"), ("whole batches", "Quix Streams, count and mean"),
        ("consume batches", "consume kafka-python"),
    ):  # fmt: skip
        if to in rates:
            compared[f"{of} : {to}"] = rounds.ratios(rates, of, to, "rate")
            print(f"{of} : {to} = {rounds.spread(compared[f'{of} : {to}'])} (CPU, min / median / max)")
    rounds.save("throughput", {"machine": rounds.machine(), "shape": shape, "results": found,
                               "cpu_ratios": compared}, options.out)  # fmt: skip


if __name__ == "__main__":
    main()
