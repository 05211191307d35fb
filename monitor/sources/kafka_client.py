"""Making, mending and closing kafka-python's consumer."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from monitor.config import SourceSettings
from monitor.errors import SourceError
from monitor.sources import decompression

CONNECT_TIMEOUT_MS = 2_000


def group_consumer(settings: SourceSettings) -> Any:
    """A KafkaConsumer that will be a member of the group. Raises KafkaTimeoutError without a broker."""
    decompression.install()
    return KafkaConsumer(
        **client_options(settings),
        group_id=settings.group_id,
        partition_assignment_strategy=[CooperativeStickyAssignor],
        session_timeout_ms=round(1000 * settings.session_timeout_s),
        heartbeat_interval_ms=round(min(3.0, settings.session_timeout_s / 5) * 1000),
    )


def await_partitions(consumer: Any, topics: list[str], timeout_s: float) -> bool:
    """Wait until the client knows the partitions of every topic; False when the time was not enough.

    A member that leads a join before it knows them hands out nothing, and nobody joins again before the
    metadata are refreshed (`metadata_max_age_ms`).
    """
    deadline_s = time.monotonic() + timeout_s
    consumer._client.cluster.request_update()
    while not all(known_partitions(consumer, topics).values()):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def known_partitions(consumer: Any, topics: list[str]) -> dict[str, set[int]]:
    """The partitions of topics as far as the client has heard of them; asks nobody."""
    cluster = consumer._client.cluster
    return {topic: set(cluster.partitions_for_topic(topic) or ()) for topic in topics}


class _Finished:
    """A join that is over but looks pending, so that the next poll takes its result."""

    is_done = False

    def __init__(self, future: Any) -> None:
        self.future = future

    def add_callback(self, callback: Callable[[Any], None]) -> None:
        self.future.add_callback(callback)

    def add_errback(self, callback: Callable[[Any], None]) -> None:
        self.future.add_errback(callback)


def keep_join_result(consumer: Any) -> None:
    """To be called before every poll: keeps a join that ended between two polls from being thrown away.

    kafka-python 3.0.12 runs a group join on its IO thread and looks at it only inside `poll`; one that
    has ended meanwhile is forgotten and a new join begins, which makes every other member join again.
    Members that are busy between polls then go round for ever and read nothing.
    """
    coordinator = getattr(consumer, "_coordinator", None)
    join: Any = getattr(coordinator, "_join_task", None)
    if coordinator is not None and getattr(join, "is_done", False) and join.succeeded():
        coordinator._join_task = _Finished(join)


def client_options(settings: SourceSettings) -> dict[str, Any]:
    """Options of KafkaConsumer that do not depend on the group.

    Raises SourceError if the environment or the file that the settings name has no password.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in settings.bootstrap_servers.split(",")],
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1_000,
        "metadata_max_age_ms": 30_000,
        "fetch_max_bytes": settings.fetch_max_bytes,
        "max_partition_fetch_bytes": settings.fetch_max_bytes // 4,
        "security_protocol": settings.security_protocol,
    }
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if getattr(settings, name) is not None:
            options[name] = str(getattr(settings, name))
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = sasl_password(settings)
    return options


def sasl_password(settings: SourceSettings) -> str:
    """From the environment or a file, never from the settings themselves. Raises SourceError without it."""
    name, path = settings.sasl_password_env, settings.sasl_password_file
    if path is not None:
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"sasl_password_file: cannot read {path}: {type(error).__name__}") from None
    if name is None or name not in os.environ:
        raise SourceError(f"sasl_password_env: the environment has no variable {name!r}")
    return os.environ[name]


def close_within(consumer: Any, timeout_s: float) -> None:
    """Close within the time, or leave it to a thread that dies with the process."""
    if consumer is None:
        return

    def close() -> None:
        with contextlib.suppress(Exception):
            consumer.close(autocommit=False, timeout_ms=max(1, round(900 * timeout_s)))

    thread = threading.Thread(target=close, name="kafka-close", daemon=True)
    thread.start()
    thread.join(timeout_s)
