"""Finds the offsets that the Kafka client cannot read, away from the consumer that serves."""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from monitor.sources.base import Partition
from monitor.sources.decompression import CompressionBombError

READ_TIMEOUT_S = 5.0
PASSING = (
    kafka_errors.RetriableError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.KafkaTimeoutError,
    OSError,
)


def unreadable_range(
    options: dict[str, Any], partition: Partition, position: int
) -> tuple[int, int, str] | None:
    """(first, end, reason) of an unreadable batch at `position`; None if `position` can be read.

    A batch is unreadable as a whole, so its end is found by doubling steps and then bisection: the first
    offset that does not fail in the same way. What fails otherwise is another batch, and there may be
    readable ones between the two. Each try takes a fresh consumer, because one that has failed does not
    recover. Raises what is raised for a broker that is away.
    """
    tp = TopicPartition(*partition)
    failure = _failure(options, tp, position)
    if failure is None:
        return None
    last = end_of(options, partition)
    bad, step = position, 1
    while bad + step < last and _failure(options, tp, bad + step) == failure:
        bad += step
        step *= 2
    good = min(bad + step, last)
    while good - bad > 1:
        middle = (bad + good) // 2
        if _failure(options, tp, middle) == failure:
            bad = middle
        else:
            good = middle
    return position, good, failure.reason


class _Failure(NamedTuple):
    reason: str  # a documented reject reason
    said: str  # by the client; a wrong checksum names the first offset of its batch


def _failure(options: dict[str, Any], tp: Any, offset: int) -> _Failure | None:
    """Why the message at an offset cannot be read, None if it can (or there is none)."""
    consumer = _consumer(options, tp)
    try:
        consumer.seek(tp, offset)
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if consumer.poll(timeout_ms=200, max_records=1):
                return None
            end = consumer.highwater(tp)
            if end is not None and consumer.position(tp, timeout_ms=0) >= end:
                return None
    except kafka_errors.OffsetOutOfRangeError:
        return None
    except PASSING as error:
        if not isinstance(error, kafka_errors.CorruptRecordError):
            raise
        return _Failure("corrupt_batch", str(error))
    except (MemoryError, CompressionBombError) as error:
        return _Failure("compression_bomb", str(error))
    except Exception as error:
        return _Failure("corrupt_batch", repr(error))
    finally:
        with contextlib.suppress(Exception):
            consumer.close(autocommit=False, timeout_ms=1_000)
    raise kafka_errors.KafkaTimeoutError(f"no answer for {tp} at {offset}")


def end_of(options: dict[str, Any], partition: Partition, timeout_ms: int = 5_000) -> int:
    """Where a partition ends, asked by a fresh client. Raises what is raised for a broker that is away."""
    tp = TopicPartition(*partition)
    consumer = _consumer(options, tp)
    try:
        return int(consumer.end_offsets([tp], timeout_ms=timeout_ms)[tp])
    finally:
        with contextlib.suppress(Exception):
            consumer.close(autocommit=False, timeout_ms=1_000)


def _consumer(options: dict[str, Any], tp: Any) -> Any:
    consumer = KafkaConsumer(**{**options, "max_partition_fetch_bytes": 1 << 16})
    consumer.assign([tp])
    return consumer
