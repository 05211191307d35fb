"""The servers that benchmarks run against: those that are named by the environment, or some of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def broker_at() -> Iterator[str]:
    """Where a broker serves: the one that KAFKA_BOOTSTRAP_SERVERS names, or one of our own."""
    from tests import services

    if (named := os.environ.get("KAFKA_BOOTSTRAP_SERVERS")) is not None:
        yield named
        return
    broker = services.Broker().start()
    try:
        yield broker.bootstrap
    finally:
        broker.stop()


@contextmanager
def postgres_at() -> Iterator[str]:
    """The SQLAlchemy URL of the server that INFERWATCH_TEST_POSTGRES names, or of one of our own."""
    from tests import services

    if (named := os.environ.get("INFERWATCH_TEST_POSTGRES")) is not None:
        yield named
        return
    server = services.Postgres().start()
    try:
        yield server.url
    finally:
        server.stop()
