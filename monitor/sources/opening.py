"""The source that the settings name."""

from __future__ import annotations

from monitor.config import SourceSettings
from monitor.errors import ConfigError
from monitor.sources.base import Source


def kafka_source(settings: SourceSettings) -> Source:
    """A member of the Kafka consumer group, read as `settings.reader` says.

    Raises ConfigError where that needs an extra that is not installed.
    """
    if settings.reader == "confluent":
        try:
            from monitor.sources.confluent import ConfluentSource
        except ImportError as error:
            fix = "install the extra (pip install 'inferwatch[confluent]') or choose another reader"
            raise ConfigError("source.reader", settings.reader, fix) from error
        return ConfluentSource(settings)
    from monitor.sources.kafka import KafkaSource

    return KafkaSource(settings)
