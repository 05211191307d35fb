"""Faults and records that keep step: messages arrive while a fleet is disturbed; it reads between faults."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.daemons import totals
from tests.fleet import Fleet


def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        return {tp.partition: end for tp, end in consumer.end_offsets(parts).items()}
    finally:
        consumer.close()


def by_series(messages: Sequence[bytes], partitions: int) -> list[tuple[int, bytes]]:
    """Every message with a partition that its series always has; what is no record goes round."""
    numbers: dict[str, int] = {}
    placed = []
    for i, message in enumerate(messages):
        try:
            record = json.loads(message)
            series = f"{record['model']}/{record['endpoint']}"
        except (ValueError, KeyError, TypeError):
            placed.append((i % partitions, message))
            continue
        placed.append((numbers.setdefault(series, len(numbers) % partitions), message))
    return placed


class Trickle(threading.Thread):
    """Produces messages in order while `faults` faults are still to come, never far ahead of them.

    The log has as many parts as there are faults. Until fault n has been done, no more than n + AHEAD parts
    are produced, so that most of the log is read between faults. `messages` are (partition, value); an
    idempotent producer, so that a broker that is killed doubles none.
    """

    PERIOD_S = 3.0  # a part is produced evenly over about this time
    AHEAD = 2

    def __init__(
        self, bootstrap: str, topic: str, messages: Sequence[tuple[int, bytes]], faults: int
    ) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.topic, self.messages = bootstrap, topic, messages
        self.faults, self.done = max(faults, 1), 0
        self.sent = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def place(self, parts: float) -> int:
        """How many messages the first `parts` parts of the log hold."""
        return min(int(len(self.messages) * parts / self.faults), len(self.messages))

    def _run(self) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap, enable_idempotence=True, delivery_timeout_ms=180_000,
            max_block_ms=180_000, linger_ms=20, reconnect_backoff_max_ms=500,
        )  # fmt: skip
        step = max(self.place(1) * 0.1 / self.PERIOD_S, 1.0)
        due = 0.0
        while self.sent < len(self.messages):
            if self.done >= self.faults:
                due = len(self.messages)
            else:
                due = min(due + step, self.place(self.done + self.AHEAD))
            for partition, value in self.messages[self.sent : int(due)]:
                producer.send(self.topic, value=value, partition=partition)
            self.sent = int(due)
            time.sleep(0.1)
        producer.flush()
        producer.close()


def run_faults(
    fleet: Fleet,
    trickle: Trickle,
    faults: Sequence[tuple[str, Callable[[], None]]],
    *,
    patience_s: float = 45.0,
) -> int:
    """One fault after the other, each at a random place of its part of the log or, when the fleet does not
    get there, after `patience_s`. Returns how many messages had been accounted for after the last one.
    """
    position = 0
    for n, (name, do) in enumerate(faults):
        _wait_until_read(fleet, trickle, trickle.place(n + fleet.rng.random()), patience_s)
        time.sleep(fleet.rng.uniform(0.0, 0.5))
        if trickle.error is not None:
            raise trickle.error
        do()
        trickle.done += 1
        with contextlib.suppress(Exception):
            position = totals(fleet.database)["position"]
            print(f"{time.strftime('%H:%M:%S')} {n + 1:3} {name:10} {position:,} of "
                  f"{trickle.sent:,} produced, {len(trickle.messages):,} in all", flush=True)  # fmt: skip
    return position


def _wait_until_read(fleet: Fleet, trickle: Trickle, position: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and trickle.error is None:
        with contextlib.suppress(Exception):  # the database is being made, or is away
            if totals(fleet.database)["position"] >= position:
                return
        fleet.running()  # whoever ended by itself is counted, and made anew
        time.sleep(0.2)
