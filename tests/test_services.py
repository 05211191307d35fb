"""The services that the other tests stand on."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests import services


@pytest.mark.kafka
def test_topics_have_their_partitions_and_messages_get_ascending_offsets(
    kafka_bootstrap: str, kafka_topic: Callable[..., str]
) -> None:
    topic = kafka_topic(partitions=3)
    assert services.produce(kafka_bootstrap, topic, [b"a", None, b"b"], partition=2) == [0, 1, 2]


@pytest.mark.postgres
def test_every_test_has_a_database_of_its_own(postgres_database: str) -> None:
    with psycopg.connect(services.plain_url(postgres_database)) as connection:
        found = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
    assert found == (0,)
