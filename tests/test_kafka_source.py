"""What only Kafka can do to a source, against a real broker."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from monitor.clock import ManualClock
from monitor.errors import ConfigError, SourceError
from monitor.sources.base import Assigned, Event, Gap, Partition, RawBatch, Revoked, Undecodable
from monitor.sources.kafka import KafkaSource
from monitor.sources.opening import kafka_source
from tests import services
from tests.test_sources import MESSAGES, assigned, kafka_settings, messages, read, until

# kafka-python leaves sockets of failed connections to the garbage collector.
pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore::ResourceWarning")]


READERS = pytest.mark.parametrize("reader", ["batches", "poll", "confluent"])
CLIENTS = pytest.mark.parametrize("reader", ["batches", "confluent"])


@pytest.fixture(autouse=True)
def _collect_sockets() -> Iterator[None]:
    """Before the next test, in which the same warning would be an error."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def harmed() -> Iterator[services.Broker]:
    """The broker of `broker`; starting one takes longer than most tests."""
    own = services.Broker().start()
    yield own
    own.stop()


@pytest.fixture
def broker(harmed: services.Broker) -> Iterator[services.Broker]:
    """A broker that nobody else uses meanwhile, to be harmed: killed, stopped, its files changed.

    It runs when a test gets it, whatever the one before has done to it, and knows topics of others.
    """
    if not harmed.runs():
        harmed.start()
    yield harmed
    if harmed.runs():
        harmed.unpause()


def delete_records(bootstrap: str, topic: str, before: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.delete_records({TopicPartition(topic, 0): before})
    admin.close()


@CLIENTS
def test_what_retention_deleted_is_a_gap_of_exact_size(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], reader: str
) -> None:
    topic = kafka_topic()
    services.produce(kafka_bootstrap, topic, MESSAGES)
    delete_records(kafka_bootstrap, topic, 37)
    source = kafka_source(kafka_settings(kafka_bootstrap, topic, reader=reader))
    partition = assigned(source)
    source.start(partition, 5)
    events = until(source, lambda es: len(messages(es)) == 163)
    assert [e for e in events if isinstance(e, Gap)] == [Gap(partition, 5, 37)]
    assert messages(events) == list(enumerate(MESSAGES))[37:]
    source.start(partition, None)
    assert read(source, 163)[0][0] == 37
    source.close()


@CLIENTS
def test_an_offset_beyond_the_end_is_an_error_not_a_rewind(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], reader: str
) -> None:
    topic = kafka_topic()
    source = kafka_source(kafka_settings(kafka_bootstrap, topic, reader=reader))
    source.start(assigned(source), 1_000)
    with pytest.raises(SourceError, match="truncated or made anew"):
        until(source, lambda es: False, timeout_s=20)
    source.close()


@CLIENTS
def test_latest_begins_at_the_end(kafka_bootstrap: str, kafka_topic: Callable[..., str], reader: str) -> None:
    topic = kafka_topic()
    services.produce(kafka_bootstrap, topic, [b"old"])
    source = kafka_source(kafka_settings(kafka_bootstrap, topic, start="latest", reader=reader))
    partition = assigned(source)
    source.start(partition, None)
    until(source, lambda es: partition in source.progress())
    services.produce(kafka_bootstrap, topic, [b"new"])
    assert read(source, 1) == [(1, b"new")]
    source.close()


@pytest.mark.parametrize("reader", ["batches", "confluent", "batches then confluent"])
def test_a_rebalance_hands_partitions_over_parked_and_loses_nothing(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], reader: str
) -> None:
    topic = kafka_topic(partitions=2)
    for number in range(2):
        services.produce(kafka_bootstrap, topic, MESSAGES, partition=number)
    first, _, second = reader.partition(" then ")
    settings = [
        kafka_settings(kafka_bootstrap, topic, session_timeout_s=6.0, reader=name)
        for name in (first, second or first)
    ]
    members = [kafka_source(settings[0])]
    owners: dict[Partition, int] = {}
    next_offset = {Partition(topic, n): 0 for n in range(2)}
    seen: dict[Partition, list[int]] = {p: [] for p in next_offset}
    parked: set[Partition] = set()
    produced_more = False
    deadline = time.monotonic() + 40
    while len(set(owners.values())) < 2 or any(len(offsets) < 400 for offsets in seen.values()):
        assert time.monotonic() < deadline, (owners, {p: len(o) for p, o in seen.items()})
        if len(owners) == 2 and len(members) == 1:
            members.append(kafka_source(settings[1]))
        for number, member in enumerate(members):
            for event in member.poll(0.1, 16):
                if isinstance(event, Assigned):
                    owners[event.partition] = number
                    member.start(event.partition, next_offset[event.partition])
                elif isinstance(event, Revoked):
                    parked.add(event.partition)
                elif isinstance(event, RawBatch):
                    assert owners[event.partition] == number
                    seen[event.partition] += event.offsets.tolist()
                    next_offset[event.partition] = event.next_offset
        both = len(set(owners.values())) == 2 and all(len(offsets) == 200 for offsets in seen.values())
        if both and not produced_more:  # what is on its way is not produced again
            produced_more = True
            for partition in seen:
                services.produce(kafka_bootstrap, topic, MESSAGES, partition=partition.partition)
    assert parked
    assert all(offsets == list(range(400)) for offsets in seen.values())
    for member in members:
        member.close()


@CLIENTS
def test_a_killed_broker_comes_back_and_reading_goes_on(broker: services.Broker, reader: str) -> None:
    topic = services.create_topic(broker.bootstrap)
    services.produce(broker.bootstrap, topic, MESSAGES)
    source = kafka_source(kafka_settings(broker.bootstrap, topic, reader=reader))
    source.start(assigned(source), 0)
    assert len(read(source, 200)) == 200
    broker.kill()
    for _ in range(8):
        assert [e for e in source.poll(0.25) if isinstance(e, RawBatch)] == []
    broker.start()
    services.produce(broker.bootstrap, topic, [b"after"])
    found: list[tuple[int, bytes | None]] = []
    position, deadline = 200, time.monotonic() + 40
    while not found:
        assert time.monotonic() < deadline
        for event in source.poll(0.25):
            if isinstance(event, Assigned):
                source.start(event.partition, position)
            found += messages([event])
    assert found == [(200, b"after")]
    broker.kill()
    begun = time.monotonic()
    source.close(timeout_s=2)
    assert time.monotonic() - begun < 5


@CLIENTS
def test_a_broker_that_is_not_there_yet_is_waited_for(reader: str) -> None:
    (port,) = services.free_ports(1)
    source = kafka_source(kafka_settings(f"127.0.0.1:{port}", "none", reader=reader))
    deadline = time.monotonic() + 20
    while source.away_s() == 0.0:
        assert source.poll(0.1) == []
        assert time.monotonic() < deadline
    source.close()


@CLIENTS
def test_a_member_without_partitions_knows_whether_the_broker_is_away(
    broker: services.Broker, reader: str
) -> None:
    """It may be the one that incidents wait for: see `Ledger.excuse`."""
    topic = services.create_topic(broker.bootstrap)
    first, second = (kafka_source(kafka_settings(broker.bootstrap, topic, reader=reader)) for _ in range(2))
    assigned(first)
    deadline = time.monotonic() + 90
    for away in (False, True, False):
        since = time.monotonic()
        while (second.away_s() > 0) != away or time.monotonic() < since + 3:
            assert time.monotonic() < deadline, (away, second.away_s())
            assert second.poll(0.1) == []
            if not away:
                first.poll(0.1)
        if not away:
            broker.pause()
        else:
            broker.unpause()
    broker.unpause()
    for source in (first, second):
        source.close(2)


@READERS
def test_every_codec_headers_tombstones_and_a_start_inside_a_batch(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], reader: str
) -> None:
    topic = kafka_topic()
    sent: list[tuple[int, bytes | None]] = []
    for codec in (None, "gzip", "snappy", "lz4", "zstd"):
        values = [None if n % 7 == 3 else b"%s-%d" % (str(codec).encode(), n) * 20 for n in range(40)]
        offsets = services.produce(
            kafka_bootstrap, topic, values, compression_type=codec, linger_ms=500, headers=[("h", b"x")]
        )
        sent += zip(offsets, values, strict=True)
    source = kafka_source(kafka_settings(kafka_bootstrap, topic, reader=reader))
    partition = assigned(source)
    for start in (0, 13, 95, 199):
        source.start(partition, start)
        assert read(source, 200 - start) == sent[start:]
    source.close()


@READERS
def test_aborted_transactions_and_control_records_stay_away(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], reader: str
) -> None:
    topic = kafka_topic()
    expected: list[bytes] = []
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=topic, linger_ms=5)
    producer.init_transactions()
    for number, commit in enumerate((True, False, True, False, True)):
        producer.begin_transaction()
        values = [b"%d-%d" % (number, n) for n in range(10)]
        for value in values:
            producer.send(topic, value=value, partition=0)
        producer.flush()
        if commit:
            producer.commit_transaction()
            expected += values
        else:
            producer.abort_transaction()
    producer.close()
    source = kafka_source(kafka_settings(kafka_bootstrap, topic, reader=reader))
    partition = assigned(source)
    source.start(partition, 0)
    found = read(source, 30)
    assert [value for _, value in found] == expected
    assert [offset for offset, _ in found[10:20]] == list(range(22, 32))
    deadline = time.monotonic() + 20
    while source.progress()[partition].position < 55:  # the markers are passed, too
        assert time.monotonic() < deadline
        assert messages(source.poll(0.1)) == []
    source.close()


def test_holes_that_compaction_left(broker: services.Broker) -> None:
    compacted = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    topic = services.create_topic(broker.bootstrap, configs={**compacted, "max.compaction.lag.ms": "100"})
    services.produce(broker.bootstrap, topic, MESSAGES[:100])  # all with one key: only the last one stays
    deadline = time.monotonic() + 60
    found: dict[str, list[tuple[int, bytes | None]]] = {"batches": [(0, None)], "batches again": []}
    while found["batches"][0][0] < 50 or found["batches again"] != found["batches"]:  # compacted meanwhile
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
        end = services.produce(broker.bootstrap, topic, [b"tick"])[0]
        for name in ("batches", "poll", "confluent", "batches again"):
            reader, group = name.split()[0], f"{name.replace(' ', '-')}{end}"
            source = kafka_source(kafka_settings(broker.bootstrap, topic, reader=reader, group_id=group))
            source.start(assigned(source), 0)
            events = until(source, lambda es, end=end: any(o == end for o, _ in messages(es)))
            found[name] = messages(events)
            source.close()
    assert found["batches"][-1] == (end, b"tick")
    assert found["poll"][0][0] < 50 or found["poll"] == found["batches"]


def test_every_reader_tells_the_same_of_a_topic(
    kafka_bootstrap: str, kafka_topic: Callable[..., str]
) -> None:
    """A fleet that changes the reader must not find that its topic was made anew."""
    topic = kafka_topic()
    told = []
    for reader in ("batches", "confluent"):
        source = kafka_source(kafka_settings(kafka_bootstrap, topic, reader=reader))
        events = until(source, lambda es: any(isinstance(e, Assigned) for e in es))
        told += [(e.topic_id, e.partitions) for e in events if isinstance(e, Assigned)]
        source.close()
    assert told[0] == told[1] and told[0][0] is not None and told[0][1] == 1


def test_without_the_extra_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    for name in ("monitor.sources.confluent", "monitor.sources.confluent_client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match="confluent"):
        kafka_source(kafka_settings("127.0.0.1:1", "none", reader="confluent"))


def corrupt(directory: Path, topic: str, needle: bytes) -> None:
    """Flip one byte of a stored message, so that the checksum of its batch is wrong."""
    segment = next(directory.glob(f"data/{topic}-0/*.log"))
    content = segment.read_bytes()
    at = content.index(needle)
    segment.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])


def test_a_corrupt_batch_is_stepped_over_and_named_again_on_the_way_back(broker: services.Broker) -> None:
    topic = services.create_topic(broker.bootstrap)
    services.produce(broker.bootstrap, topic, MESSAGES[:50])
    first = services.produce(broker.bootstrap, topic, [b"doomed-%d" % n for n in range(7)], linger_ms=500)[0]
    services.produce(broker.bootstrap, topic, MESSAGES[:50])
    broker.stop_process()
    corrupt(broker.directory, topic, b"doomed-3")
    broker.start()
    source = kafka_source(kafka_settings(broker.bootstrap, topic))
    partition = assigned(source)
    for _ in range(2):
        source.start(partition, 0)
        events = until(source, lambda es: len(messages(es)) >= 100, timeout_s=60)
        assert [e for e in events if isinstance(e, Undecodable)] == [
            Undecodable(partition, first, first + 7, "corrupt_batch")
        ]
        assert [o for o, _ in messages(events)] == [*range(50), *range(57, 107)]
    source.close()


@CLIENTS
def test_what_lies_between_two_corrupt_batches_is_read(broker: services.Broker, reader: str) -> None:
    """The steps that look for the end of the first one, doubling, come down on the second."""
    topic = services.create_topic(broker.bootstrap)
    for name, count in ((b"first", 20), (b"good", 6), (b"second", 20), (b"last", 5)):
        values = [b"%s-%d" % (name, n) for n in range(count)]
        services.produce(broker.bootstrap, topic, values, linger_ms=500)
    broker.stop_process()
    for needle in (b"first-3", b"second-3"):
        corrupt(broker.directory, topic, needle)
    broker.start()
    source = kafka_source(kafka_settings(broker.bootstrap, topic, reader=reader))
    partition = assigned(source)
    for _ in range(2):
        source.start(partition, 0)
        events = until(source, lambda es: len(messages(es)) >= 11, timeout_s=60)
        assert [e for e in events if isinstance(e, Undecodable)] == [
            Undecodable(partition, 0, 20, "corrupt_batch"),
            Undecodable(partition, 26, 46, "corrupt_batch"),
        ]
        assert [o for o, _ in messages(events)] == [*range(20, 26), *range(46, 51)]
    source.close()


def memory_mb() -> float:
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.parametrize(
    ("codec", "reader"), [("gzip", "batches"), ("zstd", "batches"), ("zstd", "confluent")]
)  # librdkafka bounds no other codec: docs/performance.md
def test_half_a_gigabyte_in_a_small_batch_is_named_and_stepped_over(
    broker: services.Broker, codec: str, reader: str
) -> None:
    topic = services.create_topic(broker.bootstrap)
    services.produce(broker.bootstrap, topic, MESSAGES[:20])
    make_bomb = (
        "import sys; from kafka import KafkaProducer; "
        "p = KafkaProducer(bootstrap_servers=sys.argv[1], compression_type=sys.argv[3], "
        "max_request_size=1 << 30); "
        "p.send(sys.argv[2], value=bytes(500_000_000), partition=0).get(120)"
    )
    command = [sys.executable, "-c", make_bomb, broker.bootstrap, topic, codec]
    subprocess.run(command, check=True, timeout=180)
    services.produce(broker.bootstrap, topic, MESSAGES[:20])
    source = kafka_source(kafka_settings(broker.bootstrap, topic, reader=reader))
    partition = assigned(source)
    before_mb = memory_mb()
    peak = Peak()
    with peak:
        source.start(partition, 0)
        events = until(source, lambda es: len(messages(es)) >= 40, timeout_s=60)
    assert [e for e in events if isinstance(e, Undecodable)] == [
        Undecodable(partition, 20, 21, "compression_bomb")
    ]
    assert [o for o, _ in messages(events)] == [*range(20), *range(21, 41)]
    assert peak.mb - before_mb < 300
    source.close()


def test_what_lies_between_two_bombs_of_many_messages_is_read(broker: services.Broker) -> None:
    topic = services.create_topic(broker.bootstrap)
    whole = {"linger_ms": 5_000, "batch_size": 1 << 27, "max_request_size": 1 << 28}
    for values in ([bytes(24_000_000)] * 3, MESSAGES[:5], [bytes(24_000_000)] * 3, MESSAGES[:4]):
        services.produce(broker.bootstrap, topic, values, compression_type="zstd", **whole)
    source = kafka_source(kafka_settings(broker.bootstrap, topic))
    partition = assigned(source)
    source.start(partition, 0)
    events = until(source, lambda es: len(messages(es)) >= 9, timeout_s=60)
    assert [e for e in events if isinstance(e, Undecodable)] == [
        Undecodable(partition, 0, 3, "compression_bomb"),
        Undecodable(partition, 8, 11, "compression_bomb"),
    ]
    assert messages(events) == [*enumerate(MESSAGES[:5], 3), *enumerate(MESSAGES[:4], 11)]
    source.close()


class Peak:
    """The largest memory of this process while it is entered."""

    mb = 0.0

    def __enter__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.mb = max(self.mb, memory_mb())


@pytest.mark.parametrize("reader", ["batches", "poll"])
def test_a_broker_that_hangs_is_noticed_and_its_return_too(broker: services.Broker, reader: str) -> None:
    """A poll that brings nothing says nothing; what the last fetch said of the log's end is old then."""
    topic = services.create_topic(broker.bootstrap)
    services.produce(broker.bootstrap, topic, MESSAGES)
    clock = ManualClock(1_000_000)
    source = KafkaSource(kafka_settings(broker.bootstrap, topic, reader=reader), clock)
    partition = assigned(source)
    source.start(partition, 0)
    assert len(read(source, 200)) == 200
    assert source.progress()[partition].end == 200
    with capture_logs() as told:
        broker.pause()
        clock.advance(11_000)
        source.poll(0.1)
        assert source.progress()[partition].end is None
        broker.unpause()
        deadline = time.monotonic() + 30
        while source.progress()[partition].end is None:
            assert time.monotonic() < deadline
            clock.advance(2_000)
            source.poll(0.1)
    names = [line["event"] for line in told]
    assert [name for name in names if name in ("source.unavailable", "source.available")] == [
        "source.unavailable",
        "source.available",
    ]
    assert source.progress()[partition].end == 200
    source.close()


def test_a_client_that_is_stuck_is_told_from_a_broker_that_is_away(
    broker: services.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = services.create_topic(broker.bootstrap)
    clock = ManualClock(1_000_000)
    source = KafkaSource(kafka_settings(broker.bootstrap, topic), clock)
    partition = assigned(source)
    source.start(partition, 0)
    monkeypatch.setattr(source._consumer, "end_offsets", unanswered)
    events: list[Event] = []
    with capture_logs() as told:
        while "source.rebuild" not in [line["event"] for line in told]:
            assert clock.at_ms < 1_200_000
            clock.advance(20_000)
            events += source.poll(0.1)
    source.start(partition, 0)  # by a caller that has not heard yet that the consumer is given up
    events += until(source, lambda es: Revoked(partition) in es)
    assert [line["event"] for line in told].count("source.rebuild") == 1
    if not any(isinstance(event, Assigned) for event in events):
        assert assigned(source) == partition
    source.start(partition, 0)
    services.produce(broker.bootstrap, topic, [b"after"])
    assert read(source, 1) == [(0, b"after")]
    source.close()


def test_a_caller_that_is_busy_between_two_polls_is_no_stall_of_the_client(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(1_000_000)
    source = KafkaSource(kafka_settings(kafka_bootstrap, topic := kafka_topic()), clock)
    services.produce(kafka_bootstrap, topic, MESSAGES)
    partition = assigned(source)
    source.start(partition, 0)
    until(source, lambda es: len(messages(es)) > 0)  # others wait, and it is known that they do

    def nothing(*_: object) -> list[RawBatch]:
        clock.advance(10_000)
        return []

    monkeypatch.setattr(source._reader, "read", nothing)
    monkeypatch.setattr(source, "_ahead", lambda _: -1)
    for _ in range(5):  # fifty seconds in polls, and ten minutes outside of them
        assert not any(isinstance(event, Revoked) for event in source.poll(0))
        clock.advance(120_000)
    assert [Revoked(partition)] == [event for _ in range(3) for event in source.poll(0)]
    source.close()


def unanswered(*_: object, **__: object) -> dict[object, int]:
    raise KafkaTimeoutError("no answer")
