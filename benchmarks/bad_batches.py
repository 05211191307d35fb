"""Batches that cannot be read, through a real broker and a real daemon; a part of faults.py fuzz.

Fuzzed messages are produced in batches of every codec. Between them lie compression bombs, and batches whose
bytes are changed on the broker's disk afterwards.
"""

from __future__ import annotations

import contextlib
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import services
from tests.daemons import Daemon, rows, totals, wait_for
from tests.fleet import write_config
from tests.receivers import hook

CODECS = (None, "gzip", "lz4", "zstd")
BOMB_CODECS, BOMB_BYTES = ("gzip", "lz4", "zstd"), 200_000_000
PER_BATCH, PER_DOOMED = 100, 7
STANDS_S = 180.0  # without a single message: stuck, not slow
HEAD = struct.Struct(">qi")  # base offset, bytes that follow
LAST_OFFSET_DELTA = struct.Struct(">i")
Row = tuple[str, str, bool]  # promise, count, kept
BOMB = """
import sys
from kafka import KafkaProducer
bootstrap, topic, codec, size = sys.argv[1:]
producer = KafkaProducer(bootstrap_servers=bootstrap, compression_type=codec, max_request_size=1 << 30)
print(producer.send(topic, value=bytes(int(size)), partition=0).get(120).offset)
"""


def detonate(bootstrap: str, topic: str, codec: str) -> int:
    """Produce one message that unpacks to 200 MB, in a process of its own; its offset."""
    command = [sys.executable, "-c", BOMB, bootstrap, topic, codec, str(BOMB_BYTES)]
    done = subprocess.run(command, check=True, timeout=180, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def batches_of(segment: bytes) -> Iterator[tuple[int, int, range]]:
    """(start, end) in bytes of every batch of a segment, and the offsets that it holds."""
    at = 0
    while at + 61 <= len(segment):
        base, length = HEAD.unpack_from(segment, at)
        if length <= 0:
            return
        (delta,) = LAST_OFFSET_DELTA.unpack_from(segment, at + 23)
        yield at, at + HEAD.size + length, range(base, base + delta + 1)
        at += HEAD.size + length


def corrupt(broker: services.Broker, topic: str, needles: Sequence[bytes]) -> set[int]:
    """Flip one byte behind each needle on the disk of a broker that is not running; the offsets harmed."""
    segment = next(broker.directory.glob(f"data/{topic}-0/*.log"))
    content, harmed = bytearray(segment.read_bytes()), set[int]()
    whole = bytes(content)
    found = list(batches_of(whole))
    for needle in needles:
        at = whole.index(needle)
        content[at] ^= 0xFF
        harmed.update(*(offsets for start, end, offsets in found if start <= at < end))
    segment.write_bytes(content)
    return harmed


def fill(
    broker: services.Broker, topic: str, messages: Sequence[bytes | None], bombs: int, doomed: int
) -> tuple[int, set[int], list[bytes]]:
    """How many messages lie in the topic, the offsets of the bombs, and what marks the doomed batches."""
    parts = [messages[i : i + PER_BATCH] for i in range(0, len(messages), PER_BATCH)]
    bomb_at = {i * len(parts) // bombs for i in range(bombs)}
    doomed_at = {i * len(parts) // doomed for i in range(doomed)}
    count, found, needles = 0, set[int](), list[bytes]()
    for i, part in enumerate(parts):
        codec = CODECS[i % len(CODECS)]
        services.produce(broker.bootstrap, topic, part, compression_type=codec)
        count += len(part)
        if i in doomed_at:
            values = [b"doomed-%d-%d" % (i, n) for n in range(PER_DOOMED)]
            services.produce(broker.bootstrap, topic, values, linger_ms=500)
            needles.append(b"doomed-%d-3" % i)
            count += PER_DOOMED
        if i in bomb_at:
            found.add(detonate(broker.bootstrap, topic, BOMB_CODECS[len(found) % len(BOMB_CODECS)]))
            count += 1
    return count, found, needles


def peak_mb(pid: int) -> int:
    """The largest memory that a process has had."""
    with open(f"/proc/{pid}/status") as handle:
        return next(int(line.split()[1]) // 1024 for line in handle if line.startswith("VmHWM"))


def through_a_broker(
    folder: Path, messages: Sequence[bytes | None], *, bombs: int, doomed: int, seed: int, postgres_url: str
) -> Iterator[Row]:
    """`postgres_url` "" = SQLite alone. Raises AssertionError with its log if a daemon stands still."""
    broker = services.Broker().start()
    try:
        topic = services.create_topic(broker.bootstrap)
        produced, bombed, needles = fill(broker, topic, messages, bombs, doomed)
        broker.stop_process()
        random.Random(seed).shuffle(needles)
        harmed = corrupt(broker, topic, needles)
        broker.start()
        urls = {"SQLite": f"sqlite:///{folder / 'broker.db'}"}
        if postgres_url:
            urls["PostgreSQL"] = services.create_database(postgres_url)
        for name, url in urls.items():
            yield from read_all(folder, broker, topic, name, url, produced, bombed, harmed)
    finally:
        broker.stop()


def wait_while_it_moves(url: str, produced: int, daemon: Daemon) -> float:
    """Until the whole log is read; seconds it took. However slow the machine is, only a stop is an error."""
    begun_s = time.monotonic()
    position = -1
    while position < produced:
        before = position

        def has_moved(before: int = before) -> bool:
            nonlocal position
            with contextlib.suppress(Exception):  # the database is being made
                position = totals(url)["position"]
            return position > before

        wait_for(f"a message behind {before} of {produced}", has_moved, STANDS_S, daemon)
    return time.monotonic() - begun_s


def read_all(
    folder: Path, broker: services.Broker, topic: str, name: str, url: str, produced: int,
    bombed: set[int], harmed: set[int],
) -> Iterator[Row]:  # fmt: skip
    """One daemon over the whole topic, and what it wrote."""
    with hook() as received:
        config = write_config(
            folder / f"{name}.toml", bootstrap=broker.bootstrap, topic=topic, group=name, database=url,
            webhook=received.url,
        )  # fmt: skip
        with Daemon(config, folder / f"{name}.log") as daemon:
            took_s = wait_while_it_moves(url, produced, daemon)
            assert daemon.process is not None
            memory_mb = peak_mb(daemon.process.pid)
            daemon.send(signal.SIGTERM)
            code = daemon.process.wait(60)
    found = totals(url)
    kinds = ("accepted", "rejected", "late", "duplicates")
    told = sum(found[kind] for kind in kinds)
    count = " + ".join(f"{found[kind]:,}" for kind in kinds) + f" = {told:,} of {produced:,}"
    yield f"{name}, a daemon and a broker: accepted + rejected + late + duplicate", count, told == produced
    for reason, expected in (("compression_bomb", bombed), ("corrupt_batch", harmed)):
        statement = f"select \"offset\" from rejected_records where reason = '{reason}'"
        named = {int(row["offset"]) for row in rows(url, statement)}
        yield f"{name}: offsets rejected as {reason}", f"{len(named)} of {len(expected)}", named == expected
    told = f"code {code}, {memory_mb} MB, {took_s:.0f} s"
    yield f"{name}: the daemon ended in order, peak memory, time", told, code == 0
