"""The source that the settings name."""

from __future__ import annotations

from monitor.config import SourceSettings
from monitor.sources.base import Source


def kafka_source(settings: SourceSettings) -> Source:
    """A member of the Kafka consumer group, read as `settings.reader` says."""
    from monitor.sources.kafka import KafkaSource

    return KafkaSource(settings)
