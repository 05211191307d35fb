"""Fixtures that every test may use: a real Kafka broker and a real PostgreSQL.

KAFKA_BOOTSTRAP_SERVERS and INFERWATCH_TEST_POSTGRES (a SQLAlchemy URL whose user may create databases)
name running servers; otherwise the first test that needs one starts it, all xdist workers share it, and
it ends with the test run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests import services

FIRST = (
    *("training_replay", "kafka_source", "dashboard", "chaos", "dashboard_actions", "end_to_end"),
    *("evaluate", "models", "pipeline", "secure_kafka", "questions", "lstm", "detectors_training"),
    *("detectors_contract", "preview", "ownership", "top", "upgrade", "dashboard_queries", "cli", "simulate"),
)
"""Modules that take longest, so that no worker is left with one of them at the end."""
SHARED = pytest.StashKey[Path]()
OWNER = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[SHARED], config.stash[OWNER] = Path(worker["shared"]), worker["owner"]
    else:
        config.stash[SHARED] = Path(tempfile.mkdtemp(prefix="inferwatch-tests-"))
        config.stash[OWNER] = os.getpid()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: tell a new worker where the services are written down and whose life they share."""
    node.workerinput["shared"] = str(node.config.stash[SHARED])
    node.workerinput["owner"] = node.config.stash[OWNER]


def pytest_unconfigure(config: pytest.Config) -> None:
    for service in _started:
        service.disown()
    if hasattr(config, "workerinput") or SHARED not in config.stash:
        return
    for written in config.stash[SHARED].glob("*.json"):
        service = json.loads(written.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(service["pid"], signal.Signals[service["signal"]])
        shutil.rmtree(service["directory"], ignore_errors=True)
    shutil.rmtree(config.stash[SHARED], ignore_errors=True)


_started: list[services.Service] = []  # kept alive until the process ends; the controller stops them


def _shared(config: pytest.Config, make: Callable[[int], services.Broker | services.Postgres]) -> str:
    """The address of the one service of a kind; starts it if no worker has done so yet."""
    directory = config.stash[SHARED]
    kind = make.__name__
    written = directory / f"{kind}.json"
    with services.file_lock(directory / f"{kind}.lock"):
        if not written.exists():
            service = make(config.stash[OWNER])
            service.start()
            _started.append(service)
            address = service.bootstrap if isinstance(service, services.Broker) else service.url
            facts = {"address": address, "pid": service.pid, "directory": str(service.directory)}
            written.write_text(json.dumps({**facts, "signal": service.kill_signal.name}))
    return str(json.loads(written.read_text())["address"])


@pytest.fixture(autouse=True)
def log_settings() -> Iterator[None]:
    """A command that is called inside a test sets the log up for its whole process."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """host:port of a broker that all tests share; a test that harms a broker starts its own."""
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or _shared(request.config, services.Broker)


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy URL of a server that all tests share; use `postgres_database` for a database."""
    return os.environ.get("INFERWATCH_TEST_POSTGRES") or _shared(request.config, services.Postgres)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """SQLAlchemy URL of a fresh, empty database of this test."""
    url = services.create_database(postgres_url)
    yield url
    services.drop_database(postgres_url, url)


@pytest.fixture
def kafka_topic(kafka_bootstrap: str) -> Callable[..., str]:
    """`kafka_topic(partitions=1, configs={})` creates a topic and returns its name."""

    def create(partitions: int = 1, configs: dict[str, str] | None = None) -> str:
        return services.create_topic(kafka_bootstrap, partitions=partitions, configs=configs)

    return create
