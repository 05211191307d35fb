"""How records get out of kafka-python: by its public `poll`, or as whole batches out of its fetcher."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Protocol

import kafka
import structlog

from monitor import metrics
from monitor.sources.base import Partition, RawBatch
from monitor.sources.batches import pack
from monitor.sources.record_batches import Budget, RecordBatches
from monitor.sources.wide_reads import read_widely

log = structlog.get_logger(__name__)

TESTED_CLIENTS = ("3.0.12",)  # versions of kafka-python whose fetcher is known to take RecordBatches


class Reader(Protocol):
    """Reads what a consumer has fetched. Raises what the consumer raises."""

    tells_holes: bool  # a batch says where it ends, also behind control records and what compaction removed

    def attach(self, consumer: Any) -> None:
        """To be called once for every new consumer, before it is read."""
        ...

    def read(self, consumer: Any, timeout_s: float, max_records: int) -> list[RawBatch]:
        """Messages in offset order per partition; at most `timeout_s` without any.

        A batch without messages says that there are none up to its `next_offset`.
        """
        ...


class PollReader:
    """The public `poll`: an object per record, on every version of the client."""

    tells_holes = False

    def attach(self, consumer: Any) -> None:
        """Nothing to do."""

    def read(self, consumer: Any, timeout_s: float, max_records: int) -> list[RawBatch]:
        found = consumer.poll(timeout_ms=round(1000 * timeout_s), max_records=max_records)
        return [
            pack(Partition(tp.topic, tp.partition), [r.offset for r in records], [r.value for r in records])
            for tp, records in found.items()
            if records
        ]


class BatchReader:
    """Whole record batches: the client fetches, and RecordBatches takes them apart."""

    tells_holes = True

    def __init__(self) -> None:
        self._budget = Budget()

    def attach(self, consumer: Any) -> None:
        from monitor.sources import cutting

        cutting.warm_up()
        read_widely()
        consumer._fetcher.PartitionRecords = partial(RecordBatches, self._budget)

    def read(self, consumer: Any, timeout_s: float, max_records: int) -> list[RawBatch]:
        """One call of `poll` brings one batch, so it is asked until enough is there or nothing waits.

        An error behind the first batch is left alone: the next call meets it again.
        """
        found: list[RawBatch] = []
        deadline_s, left = time.monotonic() + timeout_s, max_records
        timeout_ms = round(1000 * timeout_s)
        while left > 0:
            self._budget.rows = left
            try:
                taken = consumer.poll(timeout_ms=timeout_ms, max_records=1)
            except Exception:
                if not found:
                    raise
                break
            batches = [batch for part in taken.values() for batch in part]
            found += batches
            left -= sum(map(len, batches))
            if not batches or time.monotonic() > deadline_s:
                break
            timeout_ms = 0
        return found


def make_reader(name: str) -> Reader:
    """The reader of a name ("batches" | "poll"); "batches" falls back to "poll" where it is not tested."""
    if name == "poll":
        return PollReader()
    fits = hasattr(getattr(kafka.consumer.fetcher, "Fetcher", None), "PartitionRecords")
    if kafka.__version__ in TESTED_CLIENTS and fits:
        return BatchReader()
    metrics.SOURCE_ERRORS.labels(kind="reader_fallback").inc()
    log.warning(
        "source.reader_fallback", kafka_python=kafka.__version__, tested=TESTED_CLIENTS, reader="poll"
    )
    return PollReader()
