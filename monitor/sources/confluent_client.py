"""Options of confluent-kafka's consumer, its topics' identities, its messages as raw batches.

Loads confluent_kafka: import lazily.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from operator import methodcaller
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from monitor.config import SourceSettings
from monitor.sources.base import Partition, RawBatch
from monitor.sources.batches import pack
from monitor.sources.decompression import MAX_BATCH_BYTES
from monitor.sources.kafka_client import sasl_password

DESCRIBE_TIMEOUT_S = 2.0
FETCH_BACKOFF_MS = 5  # instead of a second: how long a full queue keeps a partition from being fetched
FETCH_WAIT_MS = 100  # a resumed partition waits for the fetch under way, which waits for this long
QUEUED_KB = 65_536

_ERROR, _TOPIC, _PARTITION = methodcaller("error"), methodcaller("topic"), methodcaller("partition")
_OFFSET, _VALUE = methodcaller("offset"), methodcaller("value")


def client_options(settings: SourceSettings) -> dict[str, Any]:
    """Options that do not depend on the group.

    Raises SourceError if the environment or the file that the settings name has no password.
    """
    options: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        "allow.auto.create.topics": False,
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 30_000,
    }
    files = {
        "ssl.ca.location": settings.ssl_cafile,
        "ssl.certificate.location": settings.ssl_certfile,
        "ssl.key.location": settings.ssl_keyfile,
    }
    options.update({name: str(path) for name, path in files.items() if path is not None})
    if settings.security_protocol.startswith("SASL"):
        options["sasl.mechanism"] = settings.sasl_mechanism
        options["sasl.username"] = settings.sasl_username
        options["sasl.password"] = sasl_password(settings)
    return options


def consumer_options(settings: SourceSettings) -> dict[str, Any]:
    """Of a member of the group; `client_options` included."""
    session_ms = round(1000 * settings.session_timeout_s)
    return {
        **client_options(settings),
        "group.id": settings.group_id,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": min(3_000, session_ms // 5),
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "enable.partition.eof": True,  # says where control records end that nobody hands out
        "fetch.max.bytes": settings.fetch_max_bytes,
        "max.partition.fetch.bytes": settings.fetch_max_bytes // 4,
        "receive.message.max.bytes": max(MAX_BATCH_BYTES, settings.fetch_max_bytes + 512),
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "fetch.queue.backoff.ms": FETCH_BACKOFF_MS,
        "queued.max.messages.kbytes": QUEUED_KB,
    }


class TopicFacts(NamedTuple):
    """What `Assigned` tells of a topic; the identity is written as kafka-python writes it."""

    topic_id: str | None = None
    partitions: int | None = None


def describe(settings: SourceSettings, topics: Sequence[str]) -> dict[str, TopicFacts]:
    """Identity and number of partitions of every topic that the brokers answer for in time."""
    found: dict[str, TopicFacts] = {}
    admin = AdminClient({**client_options(settings), "log_level": 3})
    answers = admin.describe_topics(TopicCollection(list(topics)), request_timeout=DESCRIBE_TIMEOUT_S)
    for topic, answer in answers.items():
        try:
            told = answer.result(DESCRIBE_TIMEOUT_S + 0.5)
        except (KafkaException, TimeoutError):
            continue
        halves = told.topic_id.get_most_significant_bits(), told.topic_id.get_least_significant_bits()
        high, low = (half % (1 << 64) for half in halves)
        found[topic] = TopicFacts(str(uuid.UUID(int=high << 64 | low)), len(told.partitions) or None)
    return found


def take(consumer: Any, timeout_s: float, max_records: int, at_once: int) -> list[Any]:
    """What has been fetched, at most `max_records`; waits for the first one only.

    Rebalance callbacks run inside. librdkafka waits until all that is asked for is there or the time is
    over, so the first message is waited for alone.
    """
    found: list[Any] = consumer.consume(1, timeout_s)
    while found and len(found) < max_records:
        wanted = min(at_once, max_records - len(found))
        more = consumer.consume(wanted, 0)
        found += more
        if len(more) < wanted:
            break
    return found


def split(messages: list[Any]) -> Iterator[tuple[Partition, list[Any], Any]]:
    """(partition, its messages in order, the error behind them or None), as runs.

    An error that names no partition has Partition("", -1).
    """
    errors = list(map(_ERROR, messages))
    begin = 0
    for at, error in enumerate(errors) if any(errors) else ():  # comparing one with None raises
        if error is not None:
            yield from ((place, rows, None) for place, rows in _by_partition(messages[begin:at]))
            message = messages[at]
            yield Partition(message.topic() or "", message.partition()), [message], error
            begin = at + 1
    yield from ((place, rows, None) for place, rows in _by_partition(messages[begin:]))


def _by_partition(messages: list[Any]) -> Iterator[tuple[Partition, list[Any]]]:
    topics, numbers = list(map(_TOPIC, messages)), list(map(_PARTITION, messages))
    if messages and topics.count(topics[0]) == len(topics) and numbers.count(numbers[0]) == len(numbers):
        yield Partition(topics[0], numbers[0]), messages
        return
    parts: dict[tuple[str, int], list[Any]] = {}
    for topic, number, message in zip(topics, numbers, messages, strict=True):
        parts.setdefault((topic, number), []).append(message)
    for place, rows in parts.items():
        yield Partition(*place), rows


def as_batch(partition: Partition, messages: list[Any]) -> RawBatch:
    return pack(partition, list(map(_OFFSET, messages)), list(map(_VALUE, messages)))
