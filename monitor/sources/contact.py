"""Whether the brokers answer, and what they said last of where the logs end.

kafka-python's `poll` returns nothing for a broker that is away, as it does for a log without news. So a
client that has heard nothing for a while asks. For the client that serves and for the ends of its partitions
only; a client that gets no answer where a fresh one gets one is stuck.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from kafka import TopicPartition

from monitor import metrics
from monitor.clock import Clock
from monitor.config import SourceSettings
from monitor.sources.base import Partition
from monitor.sources.kafka_client import client_options, known_partitions
from monitor.sources.probe import end_of

log = structlog.get_logger(__name__)

CONFIRMED_S = 5.0  # the end of a log, as the broker said it, counts for so long
ASK_AGAIN_S = 2.0  # between two questions while there is no answer
AWAY_S = 10.0  # without a word, and without an answer to a question: the broker is away
STUCK_S = 60.0  # away for so long: does a fresh client get an answer?
RETURN_S = 15.0  # that this client has to find brokers again that answer a fresh one
ASK_TIMEOUT_MS = 1_000
SAY_AGAIN_S = 60.0  # between two log lines about ends that nobody says


class Contact:
    """Belongs to the thread that polls. `away` tells an outage, which is logged when it begins and ends."""

    def __init__(self, settings: SourceSettings, clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self.away = False
        self._heard_s = self._asked_s = self._tried_s = clock.monotonic_s()
        self._answers_since_s: float | None = None  # a fresh client, while this one gets no answer
        self._ends: dict[Partition, tuple[int, float]] = {}  # end of the log, and when the broker said so
        self._said_s = float("-inf")  # when the log was told that an end is unknown

    def heard(self) -> bool:
        """The broker has sent something; True when that ends an outage."""
        self._heard_s = self.clock.monotonic_s()
        ended, self.away, self._answers_since_s = self.away, False, None
        if ended:
            log.info("source.available")
        return ended

    def away_s(self) -> float:
        """For how long nothing has been heard; 0 while the brokers answer."""
        return self.clock.monotonic_s() - self._heard_s if self.away else 0.0

    def lost(self, error: BaseException) -> None:
        """An error that only a broker that is away explains."""
        metrics.SOURCE_ERRORS.labels(kind="unavailable").inc()
        if not self.away:
            self.away, self._tried_s = True, self.clock.monotonic_s()
            log.warning("source.unavailable", error=repr(error)[:500])

    def ask_if_silent(self, consumer: Any, partitions: Iterable[Partition]) -> bool:
        """Ask for the end of one partition where nothing was heard for a while; True when an outage ends.

        A member without partitions asks for any that it knows of.
        """
        now_s, one = self.clock.monotonic_s(), sorted(partitions)[:1] or self._known(consumer)
        if not one or now_s - self._heard_s < CONFIRMED_S or now_s - self._asked_s < ASK_AGAIN_S:
            return False
        self._asked_s = now_s
        error = self._ask(consumer, one)
        if error is None:
            return self.heard()
        if self.away or now_s - self._heard_s >= AWAY_S:
            self.lost(error)
        return False

    def is_stuck(self, consumer: Any, partitions: Iterable[Partition]) -> bool:
        """True where this client has had no answer for long, and a fresh one gets one."""
        now_s, one = self.clock.monotonic_s(), sorted(partitions)[:1] or self._known(consumer)
        if not self.away or not one:
            return False
        pause_s = STUCK_S if self._answers_since_s is None else RETURN_S
        if now_s - max(self._heard_s, self._tried_s) < pause_s:
            return False
        self._tried_s = now_s
        try:
            end_of(client_options(self.settings), one[0], ASK_TIMEOUT_MS)
        except Exception:  # whatever it is, a new client would meet it too
            self._answers_since_s = None
            return False
        if self._answers_since_s is None:
            self._answers_since_s = now_s
        return now_s - self._answers_since_s >= RETURN_S

    def ends(self, consumer: Any, partitions: Iterable[Partition]) -> dict[Partition, int | None]:
        """The ends of logs as of the last seconds; what the last fetch said may be old when a broker hangs.

        None where the broker does not say.
        """
        now_s, wanted = self.clock.monotonic_s(), list(partitions)
        unsure = [p for p in wanted if not self._is_fresh(p, now_s)]
        if unsure and consumer is not None and not self.away:
            error = self._ask(consumer, unsure)
            if error is None:
                self.heard()
            elif now_s - self._said_s >= SAY_AGAIN_S:
                self._said_s = now_s
                log.info("source.end_unknown", error=repr(error)[:300])
        return {p: self._ends[p][0] if self._is_fresh(p, now_s) else None for p in wanted}

    def _known(self, consumer: Any) -> list[Partition]:
        """A partition that the client has heard of, of the topics that are read; none before it has."""
        found = known_partitions(consumer, self.settings.topics)
        return sorted(Partition(topic, n) for topic, numbers in found.items() for n in numbers)[:1]

    def _is_fresh(self, partition: Partition, now_s: float) -> bool:
        return partition in self._ends and now_s - self._ends[partition][1] < CONFIRMED_S

    def _ask(self, consumer: Any, partitions: list[Partition]) -> Exception | None:
        at_s = self.clock.monotonic_s()
        try:
            found = consumer.end_offsets([TopicPartition(*p) for p in partitions], timeout_ms=ASK_TIMEOUT_MS)
        except Exception as error:
            return error
        for partition in partitions:
            end = found.get(TopicPartition(*partition))
            if end is not None:
                self._ends[partition] = (int(end), at_s)
        return None
