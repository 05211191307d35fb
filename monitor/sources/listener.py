"""What kafka-python tells about partitions that come and go."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import structlog
from kafka.consumer.subscription_state import ConsumerRebalanceListener

from monitor.sources.base import Assigned, Event, Partition, Revoked

log = structlog.get_logger(__name__)


class Listener(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Runs on the client's IO thread: parks a new partition and writes the event down; never raises."""

    def __init__(self, consumer: Any, events: deque[Event]) -> None:
        self.consumer, self.events = consumer, events

    def on_partitions_assigned(self, assigned: Any) -> None:
        for tp in sorted(assigned):
            try:
                self.consumer.seek(tp, 0)
                self.consumer.pause(tp)
            except Exception as error:
                log.error("source.assign_failed", partition=str(tp), error=repr(error))
            self.events.append(_assigned(self.consumer, tp))

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.events.extend(Revoked(partition_of(tp)) for tp in sorted(revoked))

    on_partitions_lost = on_partitions_revoked


def partition_of(tp: Any) -> Partition:
    return Partition(tp.topic, tp.partition)


def _assigned(consumer: Any, tp: Any) -> Assigned:
    """With the topic's id and leader epoch, as far as the client's metadata shows them."""
    topic_id = leader_epoch = partitions = None
    with contextlib.suppress(Exception):
        cluster = consumer._client.cluster
        found = cluster.topic_id(tp.topic)
        topic_id = None if found is None else str(found)
        epoch = cluster.leader_epoch_for_partition(tp)
        leader_epoch = None if epoch is None or epoch < 0 else int(epoch)
        partitions = len(cluster.partitions_for_topic(tp.topic) or ()) or None
    return Assigned(partition_of(tp), topic_id, leader_epoch, partitions)
